//! What the figures depend on: the machine, and the versions of everything.

use std::fs::read_to_string;

use nix::sys::utsname::uname;

use crate::results::Machine;

/// This one.
pub fn this() -> Machine {
    let read = |path: &str| read_to_string(path).unwrap_or_default();
    let kernel = uname().map(|name| format!("{} {}", name.sysname().display(), name.release().display())).unwrap_or_default();
    Machine {
        cores: std::thread::available_parallelism().map_or(0, |count| count.get() as u32),
        cpu_model: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
        memory_mib: field(&read("/proc/meminfo"), "MemTotal").and_then(|total| kib(&total)).unwrap_or_default() / 1024,
        kernel,
        load_average: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default(),
    }
}

/// The first value of that name in a list of `name: value`.
fn field(text: &str, name: &str) -> Option<String> {
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.into_iter().find(|(field, _)| field.trim() == name).map(|(_, value)| value.trim().to_owned())
}

fn kib(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse().ok()
}

/// The version of a library that this program was built with.
pub fn built_with(library: &str) -> Option<String> {
    version_in(include_str!("../../Cargo.lock"), library)
}

fn version_in(lock_file: &str, library: &str) -> Option<String> {
    let package = lock_file.split_once(&format!("name = \"{library}\"\nversion = \""))?.1;
    package.split_once('"').map(|(version, _)| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_names() {
        let text = "processor\t: 0\nmodel name\t: X Y\nprocessor\t: 1\nmodel name\t: Z\nMemTotal:       2048 kB\n";
        assert_eq!(field(text, "model name").as_deref(), Some("X Y"));
        assert_eq!(field(text, "MemTotal").and_then(|total| kib(&total)), Some(2048));
        assert_eq!(field(text, "flags"), None);
        let machine = this();
        assert!(machine.cores > 0 && machine.memory_mib > 0 && machine.kernel.starts_with("Linux"), "{machine:?}");
    }

    #[test]
    fn versions_are_those_of_the_lock_file() {
        assert!(built_with("rslock").is_some_and(|version| version.starts_with("0.")));
        assert_eq!(built_with("no-such-library"), None);
    }
}
