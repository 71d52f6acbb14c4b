//! Questions to a Redis server itself, past the proxy.

use std::collections::HashSet;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, InfoDict};

use crate::Error;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Keys that a server looks at in one step: short enough for a server that somebody else uses too.
const SCAN_STEP: u32 = 1000;

/// A connection to a server.
pub struct Link {
    url: String,
    connection: MultiplexedConnection,
}

/// What servers have done since they started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Those within scripts too.
    pub commands: u64,
    /// EVAL and EVALSHA.
    pub scripts: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Counters {
    /// Of two servers.
    pub fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// Between an earlier time and this one.
    pub fn since(self, earlier: Self) -> Self {
        self.with(earlier, u64::saturating_sub)
    }

    fn with(self, other: Self, operation: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            commands: operation(self.commands, other.commands),
            scripts: operation(self.scripts, other.scripts),
            bytes_in: operation(self.bytes_in, other.bytes_in),
            bytes_out: operation(self.bytes_out, other.bytes_out),
        }
    }

    /// As `INFO stats` and `INFO commandstats` say.
    fn of(info: &str) -> Option<Self> {
        let dictionary = InfoDict::new(info);
        let number = |key: &str| dictionary.get::<String>(key)?.trim().parse().ok();
        let calls = |command: &str| {
            let stats = dictionary.get::<String>(&format!("cmdstat_{command}"))?;
            stats.strip_prefix("calls=")?.split(',').next()?.parse::<u64>().ok()
        };
        Some(Self {
            commands: number("total_commands_processed")?,
            scripts: calls("eval").unwrap_or(0) + calls("evalsha").unwrap_or(0),
            bytes_in: number("total_net_input_bytes")?,
            bytes_out: number("total_net_output_bytes")?,
        })
    }
}

impl Link {
    /// Opens one.
    pub async fn open(url: &str) -> Result<Self, Error> {
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
        let client = redis::Client::open(url).map_err(|error| format!("{}: {error}", without_password(url)))?;
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        let connection = connection.map_err(|error| format!("{}: no connection: {error}", without_password(url)))?;
        Ok(Self { url: without_password(url), connection })
    }

    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, Error> {
        command.query_async(&mut self.connection).await.map_err(|error| format!("{}: {error}", self.url).into())
    }

    /// What it has done so far.
    pub async fn counters(&mut self) -> Result<Counters, Error> {
        // Two questions, because Redis 6 takes one section at a time.
        let mut info = String::new();
        for section in ["stats", "commandstats"] {
            info += &self.ask::<String>(redis::cmd("INFO").arg(section)).await?;
        }
        Counters::of(&info).ok_or_else(|| format!("{}: no counters in its INFO", self.url).into())
    }

    /// Its version, and what it calls itself.
    pub async fn version(&mut self) -> Result<(String, String), Error> {
        let info: String = self.ask(redis::cmd("INFO").arg("server")).await?;
        let info = InfoDict::new(&info);
        let get = |key: &str| info.get::<String>(key).map(|value| value.trim().to_owned());
        let version = |name: &str, key| Some((name.to_owned(), get(key)?));
        version("valkey", "valkey_version")
            .or_else(|| version("redis", "redis_version"))
            .ok_or_else(|| format!("{}: no version in its INFO", self.url).into())
    }

    /// How many keys it has whose names match.
    pub async fn count_keys(&mut self, pattern: &str) -> Result<u64, Error> {
        let (mut cursor, mut found) = (0, HashSet::new());
        loop {
            let step = redis::cmd("SCAN").arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN_STEP).clone();
            let (next, keys): (u64, Vec<Vec<u8>>) = self.ask(&step).await?;
            // One key may be told more than once.
            found.extend(keys);
            if next == 0 {
                return Ok(found.len() as u64);
            }
            cursor = next;
        }
    }

    /// The milliseconds that are left of a key, rounded down; none if it is not there, or does not expire.
    pub async fn time_left_ms(&mut self, key: &str) -> Result<Option<u64>, Error> {
        let left: i64 = self.ask(redis::cmd("PTTL").arg(key)).await?;
        Ok(u64::try_from(left).ok())
    }

    /// Changes what clients without a name of their own may do, such as `-publish`.
    pub async fn allow(&mut self, rule: &str) -> Result<(), Error> {
        self.ask(redis::cmd("ACL").arg("SETUSER").arg("default").arg(rule)).await
    }
}

/// For messages.
pub fn without_password(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut parsed) if parsed.password().is_some() => {
            // Fails only for URLs that can not have one.
            let _ = parsed.set_password(Some("***"));
            parsed.to_string()
        }
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Stats\r\ntotal_commands_processed:700\r\ntotal_net_input_bytes:50\r\ntotal_net_output_bytes:60\r\n\
                        # Commandstats\r\ncmdstat_set:calls=9,usec=1\r\ncmdstat_evalsha:calls=30,usec=7,usec_per_call=1.0\r\n\
                        cmdstat_eval:calls=2,usec=3\r\n";

    #[test]
    fn counters_are_those_of_info() {
        let counters = Counters::of(INFO).unwrap();
        assert_eq!(counters, Counters { commands: 700, scripts: 32, bytes_in: 50, bytes_out: 60 });
        assert_eq!(Counters::of("# Stats\r\n"), None);
        let later = counters.plus(Counters { commands: 10, ..Counters::default() });
        assert_eq!(later.since(counters), Counters { commands: 10, ..Counters::default() });
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_password("redis://u:secret@h:1/0"), "redis://u:***@h:1/0");
        assert_eq!(without_password("redis://h:1"), "redis://h:1");
    }
}
