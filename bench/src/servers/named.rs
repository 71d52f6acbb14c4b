//! Servers that somebody named: they may be in use, so nothing is done to them that was not allowed by name.

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use url::Url;

use super::link::without_password;
use crate::Error;

/// Where the load goes, if not to servers that are started for it.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Servers of your own")]
pub struct NamedArgs {
    /// Proxies to load, instead of one that is started; the clients are divided among them
    #[arg(long, value_delimiter = ',', value_name = "URLS")]
    pub server: Vec<String>,
    /// Redis servers to lock on, instead of five that are started: `redis://[user:password@]host[:port]`. Without --server a proxy
    /// is started in front of them. With it they are what that proxy uses, to count their work, and to find what is left behind
    #[arg(long, value_delimiter = ',', value_name = "URLS")]
    pub nodes: Vec<String>,
    /// The designated server that belongs to --nodes
    #[arg(long, value_name = "URL", requires = "nodes")]
    pub fencing_url: Option<String>,
    /// What stands before the names of locks on --nodes
    #[arg(long, value_name = "TEXT", default_value = "lock:")]
    pub key_prefix: String,
    /// Yes, load this host. Needed for each host of --server, --nodes and --fencing-url, also for this one
    #[arg(long, value_delimiter = ',', value_name = "HOSTS")]
    pub yes_load: Vec<String>,
    /// The longest that a run on servers of your own may take: one that would take longer is refused, and one that does is ended
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = humantime::parse_duration)]
    pub at_most: Duration,
}

impl NamedArgs {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        !self.server.is_empty() || !self.nodes.is_empty()
    }

    /// Refuses what is not allowed, or makes no sense.
    pub fn check(&self, quorum_counter: bool) -> Result<(), Error> {
        for url in self.nodes.iter().chain(&self.fencing_url) {
            scheme(url, &["redis"])?;
        }
        for url in &self.server {
            scheme(url, &["http"])?;
        }
        if self.server.is_empty() && !self.nodes.is_empty() && self.fencing_url.is_none() && !quorum_counter {
            return Err("name the designated server of --nodes with --fencing-url, or let the nodes count the tokens: \
                        --quorum-counter"
                .into());
        }
        for url in self.server.iter().chain(&self.nodes).chain(&self.fencing_url) {
            let host = host(url)?;
            if !self.yes_load.contains(&host) {
                let url = without_password(url);
                return Err(format!(
                    "{url}: this will load that server as hard as it can. Say --yes-load {host} if you mean it"
                )
                .into());
            }
        }
        Ok(())
    }
}

fn scheme(url: &str, allowed: &[&str]) -> Result<(), Error> {
    let parsed = Url::parse(url).map_err(|error| format!("{}: {error}", without_password(url)))?;
    match allowed.contains(&parsed.scheme()) {
        true => Ok(()),
        false => {
            Err(format!("{}: a URL that begins with {}:// is expected", without_password(url), allowed.join(":// or ")).into())
        }
    }
}

/// As it has to be said.
fn host(url: &str) -> Result<String, Error> {
    let parsed = Url::parse(url).map_err(|error| format!("{}: {error}", without_password(url)))?;
    let host = parsed.host_str().unwrap_or_default();
    // Addresses of IPv6 stand in brackets.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(format!("{}: there is no host in it", without_password(url)).into());
    }
    // One way to write an address.
    Ok(host.parse::<IpAddr>().map_or_else(|_| host.to_owned(), |address| address.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(server: &[&str], nodes: &[&str], yes: &[&str]) -> NamedArgs {
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        NamedArgs { server: owned(server), nodes: owned(nodes), yes_load: owned(yes), ..NamedArgs::default() }
    }

    #[test]
    fn every_host_has_to_be_allowed_by_name() {
        let servers = ["http://proxy.example:50051", "http://10.0.0.7:50051"];
        assert!(named(&servers, &[], &["proxy.example", "10.0.0.7"]).check(false).is_ok());
        let refused = named(&servers, &[], &["proxy.example"]).check(false).unwrap_err().to_string();
        assert!(refused.contains("--yes-load 10.0.0.7"), "{refused}");
        assert!(named(&servers, &[], &["example", "10.0.0"]).check(false).is_err(), "the whole host");
        for loopback in ["http://127.0.0.1:50051", "http://localhost:50051", "http://[::1]:50051"] {
            let refused = named(&[loopback], &[], &[]).check(false).unwrap_err().to_string();
            assert!(refused.contains("--yes-load"), "this machine too: {refused}");
        }
        assert!(named(&["http://[::1]:50051"], &[], &["::1"]).check(false).is_ok());
    }

    #[test]
    fn nodes_need_a_counter_and_a_permission() {
        let nodes = ["redis://user:secret@r1:6379", "redis://r2"];
        let refused = named(&[], &nodes, &["r2"]).check(true).unwrap_err().to_string();
        assert!(refused.contains("--yes-load r1") && !refused.contains("secret"), "{refused}");
        assert!(named(&[], &nodes, &["r1", "r2"]).check(true).is_ok());
        assert!(named(&[], &nodes, &["r1", "r2"]).check(false).unwrap_err().to_string().contains("--fencing-url"));
        let fenced = NamedArgs { fencing_url: Some("redis://f".to_owned()), ..named(&[], &nodes, &["r1", "r2"]) };
        assert!(fenced.check(false).unwrap_err().to_string().contains("--yes-load f"));
    }

    #[test]
    fn senseless_urls_are_refused() {
        for (server, nodes) in
            [("redis://r1", "redis://r1"), ("http://r1", "http://r1"), ("r1:50051", "redis://r1"), ("http://r1", "rediss://r1")]
        {
            assert!(named(&[server], &[nodes], &["r1"]).check(true).is_err(), "{server} {nodes}");
        }
    }
}
