//! Child processes that end with this one, however that ends.

use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::signal::Signal;

use crate::Error;

/// A child process that is killed when dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts it. To be called from the main thread: it ends with the *thread* that started it.
    pub fn start(command: &mut Command) -> Result<Self, Error> {
        // A Ctrl-C is for us.
        command.stdin(Stdio::null()).process_group(0);
        die_with_parent(command);
        let program = command.get_program().to_owned();
        let child = command.spawn().map_err(|error| format!("{} can not be started: {error}", program.display()))?;
        Ok(Self { child })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it writes, if that was piped. Once.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has the system kill the child when this thread ends, however it ends.
fn die_with_parent(command: &mut Command) {
    // SAFETY: one system call between fork and exec, which is allowed there: nothing is allocated or locked.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_process_goes_when_it_is_dropped() {
        let process = Process::start(Command::new("sleep").arg("60")).unwrap();
        let entry = PathBuf::from(format!("/proc/{}", process.id()));
        assert!(entry.exists());
        drop(process);
        assert!(!entry.exists());
    }
}
