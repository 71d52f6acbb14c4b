//! Wall clocks of servers that a test can set.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The wall clock of one server: `clock.c` in its process reads how far it is off from a page that both map.
pub struct Clock {
    page: File,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Clock {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("offset");
        std::fs::write(&path, [0; 4096]).unwrap();
        let page = File::options().write(true).open(&path).unwrap();
        Self { page, path, _directory: directory }
    }

    /// From now on it is off by so many microseconds.
    pub fn shift(&self, micros: i64) {
        self.page.write_all_at(&micros.to_ne_bytes(), 0).unwrap();
    }

    /// For the server that shall live by it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let value = |path: &PathBuf| path.to_str().unwrap().to_owned();
        vec![("LD_PRELOAD".to_owned(), value(clock_library())), ("CLOCK_OFFSET_FILE".to_owned(), value(&self.path))]
    }
}

/// Compiled once for every run of these tests.
fn clock_library() -> &'static PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        // Servers of another run may have it mapped: a new file, under the old name once it is complete.
        let (new, library) = (directory.join(format!("clock-{}.so", std::process::id())), directory.join("clock.so"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/clock.c");
        let status = Command::new("cc").args(["-shared", "-fPIC", "-O2", "-Wall", "-o"]).arg(&new).arg(source).status();
        assert!(status.expect("a C compiler").success(), "{source} does not compile");
        std::fs::rename(new, &library).unwrap();
        library
    })
}
