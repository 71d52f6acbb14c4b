//! A real PostgreSQL server in a directory of its own, reached by a Unix socket there; it ends with the test.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};

use crate::support::{PATIENCE, Process};

/// PostgreSQL refuses to be run by root: then it runs as the user that Debian's package has made for it.
const UNPRIVILEGED: &str = "postgres";

pub struct Postgres {
    process: Process,
    pub programs: PathBuf,
    directory: tempfile::TempDir,
}

impl Postgres {
    pub fn start() -> Self {
        let programs = programs();
        let directory = tempfile::tempdir().unwrap();
        if Uid::effective().is_root() {
            let user = User::from_name(UNPRIVILEGED).unwrap().expect("the user postgres, which Debian's package makes");
            chown(directory.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        let data = directory.path().join("data");
        let mut initdb = unprivileged(&programs.join("initdb"), directory.path());
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"]).arg(&data);
        let output = initdb.output().unwrap();
        assert!(output.status.success(), "{initdb:?}: {}", String::from_utf8_lossy(&output.stderr));

        let mut command = unprivileged(&programs.join("postgres"), directory.path());
        command.arg("-D").arg(&data).arg("-k").arg(directory.path()).args(["-p", "5432"]);
        for option in ["listen_addresses=", "fsync=off", "shared_buffers=16MB", "dynamic_shared_memory_type=mmap"] {
            command.args(["-c", option]);
        }
        let log = File::create(directory.path().join("log")).unwrap();
        let process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log));
        let mut postgres = Self { process, programs, directory };
        postgres.comes_up();
        postgres
    }

    fn comes_up(&mut self) {
        let started = Instant::now();
        while !self.psql().args(["-c", "SELECT 1"]).output().unwrap().status.success() {
            let alive = self.process.has_ended().is_none() && started.elapsed() < PATIENCE;
            assert!(alive, "{}", fs::read_to_string(self.socket().join("log")).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// The directory of its socket.
    pub fn socket(&self) -> &Path {
        self.directory.path()
    }

    pub fn psql(&self) -> Command {
        psql(&self.programs, self.socket())
    }

    /// What psql prints for a statement.
    pub fn sql(&self, statement: &str) -> String {
        let output = self.psql().args(["-c", statement]).output().unwrap();
        assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }
}

impl Drop for Postgres {
    /// It ends its own processes and gives back its shared memory, if it is let.
    fn drop(&mut self) {
        let started = Instant::now();
        if self.process.has_ended().is_none() {
            self.process.signal(Signal::SIGQUIT);
        }
        while self.process.has_ended().is_none() && started.elapsed() < PATIENCE {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// Prints rows only, without a frame, and ends at the first error.
pub fn psql(programs: &Path, socket: &Path) -> Command {
    let mut command = Command::new(programs.join("psql"));
    for (name, _) in env::vars().filter(|(name, _)| name.starts_with("PG")) {
        command.env_remove(name);
    }
    command.args(["--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-p", "5432", "-h"]).arg(socket);
    // That the table is there already is no news.
    command.env("PGOPTIONS", "-c client_min_messages=warning").stdin(Stdio::null());
    command
}

/// A program that gets SIGQUIT when this thread ends, which is how PostgreSQL ends at once and cleanly; never as root.
fn unprivileged(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if Uid::effective().is_root() {
        command.args(["--reuid", UNPRIVILEGED, "--regid", UNPRIVILEGED, "--init-groups"]);
    }
    command.args(["--pdeathsig", "QUIT"]).arg(program).current_dir(directory);
    command
}

/// Where the programs are: on PATH, or where Debian has them, of the newest version.
fn programs() -> PathBuf {
    let on_path =
        env::split_paths(&env::var_os("PATH").unwrap()).map(|folder| folder.join("initdb")).find(|file| file.exists());
    let version = |bin: &PathBuf| bin.parent().and_then(|folder| folder.file_name()?.to_str()?.parse::<u32>().ok());
    let debian = || {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
        let bins = versions.map(|entry| entry.unwrap().path().join("bin")).filter(|bin| bin.join("initdb").exists());
        bins.max_by_key(version)
    };
    // A link may stand alone; the program that it leads to has the others beside it.
    let beside = |initdb: PathBuf| fs::canonicalize(initdb).unwrap().parent().unwrap().to_owned();
    on_path.map(beside).or_else(debian).expect("PostgreSQL's initdb, of Debian's package postgresql: make test installs it")
}
