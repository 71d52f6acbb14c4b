//! What processes have used, from /proc.
//!
//! User and system time are counted in ticks of 10 ms there: too coarse for a request, good to a percent over a window of
//! some seconds.

use std::io;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// What a server process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Proxy,
    /// A lock node, or the designated server.
    Redis,
    Etcd,
}

/// A server process.
#[derive(Clone, Debug)]
pub struct Process {
    /// `proxy 1`, `node 3`, `fence`, `etcd`.
    pub name: String,
    pub kind: Kind,
    pub pid: u32,
}

/// User and system time since the start of each process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// This process.
    pub client: Duration,
    /// In the order of the processes; nothing of those that are gone.
    pub servers: Vec<Option<Duration>>,
}

impl CpuTime {
    /// Until now.
    pub fn of(processes: &[Process]) -> io::Result<Self> {
        let servers = processes.iter().map(|process| used_by(process.pid).ok()).collect();
        Ok(Self { client: used_by(std::process::id())?, servers })
    }

    /// Between an earlier time and this one.
    pub fn since(&self, earlier: &Self) -> Self {
        let difference = |(now, then): (&Option<Duration>, &Option<Duration>)| Some(now.as_ref()?.saturating_sub((*then)?));
        Self {
            client: self.client.saturating_sub(earlier.client),
            servers: self.servers.iter().zip(&earlier.servers).map(difference).collect(),
        }
    }

    /// All servers of a kind together; nothing if there are none, or one of them is gone.
    pub fn of_kind(&self, kind: Kind, processes: &[Process]) -> Option<Duration> {
        let of_kind = processes.iter().zip(&self.servers).filter(|(process, _)| process.kind == kind);
        let times: Vec<Duration> = of_kind.map(|(_, time)| *time).collect::<Option<_>>()?;
        (!times.is_empty()).then(|| times.iter().sum())
    }
}

/// The resident memory in KiB of the largest proxy; nothing if there is none here.
pub fn proxy_resident_kib(processes: &[Process]) -> Option<u64> {
    processes.iter().filter(|process| process.kind == Kind::Proxy).filter_map(|process| of_memory(process.pid).ok()).max()
}

fn of_memory(pid: u32) -> io::Result<u64> {
    let path = format!("/proc/{pid}/status");
    resident_kib(&std::fs::read_to_string(&path)?).ok_or_else(|| unreadable(&path))
}

fn used_by(pid: u32) -> io::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let ticks = ticks(&std::fs::read_to_string(&path)?).ok_or_else(|| unreadable(&path))?;
    let a_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u32::try_from(ticks).ok()).unwrap_or(100);
    Ok(Duration::from_secs(ticks) / a_second)
}

fn unreadable(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{path} has an unknown form"))
}

/// User and system ticks of all threads together: fields 14 and 15 of `/proc/PID/stat`.
fn ticks(stat: &str) -> Option<u64> {
    // The second field is a name that may hold spaces and parentheses.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "4711 (redis-server 12) S 1 4711 4711 0 -1 4194304 1033 7 0 3 1200 345 9 8 20 0 5 0 987654 1 2 3";

    fn process(kind: Kind, pid: u32) -> Process {
        Process { name: "x".to_owned(), kind, pid }
    }

    #[test]
    fn ticks_are_user_plus_system_without_children() {
        assert_eq!(ticks(STAT), Some(1545));
        assert_eq!(ticks(&STAT.replace("redis-server 12", "a) S 1 (b")), Some(1545), "names are anything");
        assert_eq!(ticks("4711 (x) S 1 2"), None);
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn resident_memory_is_in_kib() {
        assert_eq!(resident_kib("Name:\tx\nVmHWM:\t   999 kB\nVmRSS:\t   12345 kB\nThreads:\t1\n"), Some(12345));
        assert_eq!(resident_kib("Name:\tx\n"), None);
        let ourselves = process(Kind::Proxy, std::process::id());
        assert!(proxy_resident_kib(&[ourselves]).unwrap() > 100);
        assert_eq!(proxy_resident_kib(&[process(Kind::Etcd, 1)]), None);
    }

    #[test]
    fn work_is_counted_for_who_does_it() {
        let processes = [process(Kind::Proxy, std::process::id()), process(Kind::Redis, 1)];
        let before = CpuTime::of(&processes).unwrap();
        let started = std::time::Instant::now();
        // Until enough of it was ours, however busy the machine is.
        while CpuTime::of(&processes).unwrap().since(&before).client < Duration::from_millis(50) {
            assert!(started.elapsed() < Duration::from_secs(60));
        }
        let used = CpuTime::of(&processes).unwrap().since(&before);
        assert!(used.of_kind(Kind::Proxy, &processes).unwrap() >= Duration::from_millis(50), "{used:?}");
    }

    #[test]
    fn kinds_are_added_up_and_those_that_are_gone_are_not_a_0() {
        let ms = Duration::from_millis;
        let time = |client, servers: [Option<u64>; 4]| CpuTime {
            client: ms(client),
            servers: servers.map(|time| time.map(ms)).into(),
        };
        let processes = [Kind::Proxy, Kind::Redis, Kind::Redis, Kind::Etcd].map(|kind| process(kind, 1));
        let used = time(11, [Some(22), Some(33), Some(44), None]).since(&time(1, [Some(2), Some(3), Some(4), Some(5)]));
        assert_eq!(used, time(10, [Some(20), Some(30), Some(40), None]));
        assert_eq!(used.of_kind(Kind::Redis, &processes), Some(ms(70)));
        assert_eq!(used.of_kind(Kind::Etcd, &processes), None);
        assert_eq!(used.of_kind(Kind::Proxy, &[]), None);
    }
}
