//! Child processes that end with this one, however that ends.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

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

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
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

/// So many different loopback addresses that are free now.
pub fn free_addresses(count: usize) -> Result<Vec<SocketAddr>, Error> {
    // All of them are held until the last is found, so that none is found twice.
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>()?;
    Ok(listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
}

/// A directory that goes away with this process, however that ends.
pub struct Directory {
    path: PathBuf,
    /// A shell waits for the end of this pipe, which only we hold.
    _held: Option<ChildStdin>,
}

impl Directory {
    /// Creates it in `parent`.
    pub fn create(parent: &Path) -> Result<Self, Error> {
        let path = parent.join(format!("redlockd-bench-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut directory = Self { path, _held: None };
        // The second is for servers that the system is about to kill too.
        let keeper = Command::new("sh")
            .args(["-c", "cat > /dev/null; sleep 1; rm -rf -- \"$0\""])
            .arg(&directory.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        directory._held = keeper.map_err(|error| format!("sh can not be started: {error}"))?.stdin;
        Ok(directory)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_addresses_differ() {
        let addresses = free_addresses(3).unwrap();
        assert!(addresses[0] != addresses[1] && addresses[1] != addresses[2] && addresses[0] != addresses[2]);
    }

    #[test]
    fn a_process_and_its_directory_go_when_they_are_dropped() {
        let directory = Directory::create(&std::env::temp_dir()).unwrap();
        let path = directory.path().to_owned();
        std::fs::write(path.join("file"), "x").unwrap();
        let process = Process::start(Command::new("sleep").arg("60")).unwrap();
        let entry = PathBuf::from(format!("/proc/{}", process.id()));
        assert!(path.exists() && entry.exists());
        drop((process, directory));
        assert!(!path.exists() && !entry.exists());
    }
}
