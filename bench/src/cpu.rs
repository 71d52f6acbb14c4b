//! What processes have used, from /proc.
//!
//! User and system time are counted in ticks of 10 ms there: too coarse for a request, good to a percent over a window of
//! some seconds.

use std::io;
use std::ops::Sub;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// Who is measured.
#[derive(Clone, Debug)]
pub struct Processes {
    /// The proxy.
    pub proxy: u32,
    /// The lock nodes and the designated server.
    pub redis: Vec<u32>,
}

/// User and system time, by who used it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// This process.
    pub client: Duration,
    /// The proxy.
    pub proxy: Duration,
    /// All Redis servers together.
    pub redis: Duration,
}

impl CpuTime {
    /// All of it.
    pub fn total(self) -> Duration {
        self.client + self.proxy + self.redis
    }
}

impl Sub for CpuTime {
    type Output = Self;
    fn sub(self, earlier: Self) -> Self {
        Self {
            client: self.client.saturating_sub(earlier.client),
            proxy: self.proxy.saturating_sub(earlier.proxy),
            redis: self.redis.saturating_sub(earlier.redis),
        }
    }
}

impl Processes {
    /// What they have used since they started.
    pub fn cpu_time(&self) -> io::Result<CpuTime> {
        let redis = self.redis.iter().map(|pid| of(*pid)).sum::<io::Result<Duration>>()?;
        Ok(CpuTime { client: of(std::process::id())?, proxy: of(self.proxy)?, redis })
    }

    /// The proxy's resident memory in KiB.
    pub fn proxy_resident_kib(&self) -> io::Result<u64> {
        let path = format!("/proc/{}/status", self.proxy);
        resident_kib(&std::fs::read_to_string(&path)?).ok_or_else(|| unreadable(&path))
    }
}

fn of(pid: u32) -> io::Result<Duration> {
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
    }

    #[test]
    fn work_is_counted_for_who_does_it() {
        let processes = Processes { proxy: std::process::id(), redis: vec![1] };
        let before = processes.cpu_time().unwrap();
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_millis(300) {
            std::hint::black_box(before);
        }
        let used = processes.cpu_time().unwrap() - before;
        assert!(used.client >= Duration::from_millis(50), "{used:?}");
        assert!(processes.proxy_resident_kib().unwrap() > 100);
    }

    #[test]
    fn a_difference_is_taken_for_each() {
        let ms = Duration::from_millis;
        let (before, after) =
            (CpuTime { client: ms(1), proxy: ms(2), redis: ms(3) }, CpuTime { client: ms(11), proxy: ms(22), redis: ms(33) });
        assert_eq!((after - before).total(), ms(60));
    }
}
