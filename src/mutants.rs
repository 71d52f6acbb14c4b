//! Deliberate breakages of the protocol, for `make mutants`: each must be caught by the simulation. They exist only in builds
//! with the feature `mutants`; everywhere else `mutant!` is `false`.

/// Whether the mutant of this name is chosen.
macro_rules! mutant {
    ($name:literal) => {{
        #[cfg(feature = "mutants")]
        let chosen = $crate::mutants::is_chosen($name);
        #[cfg(not(feature = "mutants"))]
        let chosen = false;
        chosen
    }};
}

#[cfg(feature = "mutants")]
pub use chosen::{ALL, choose, in_lua, is_chosen};

#[cfg(feature = "mutants")]
mod chosen {
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Name, and what it breaks.
    pub const ALL: &[(&str, &str)] = &[
        ("drift-ignored", "validity is the TTL less the time elapsed"),
        ("drift-of-the-wait-ignored", "served_for stretches the lease on a slow client's clock"),
        ("elapsed-read-too-early", "elapsed is read before the votes and the token are there"),
        ("too-late-is-granted", "validity is not checked again after the token"),
        ("quorum-of-the-reachable", "silent nodes do not count for the size of the quorum"),
        ("quorum-of-one-less", "half of the nodes are enough"),
        ("error-is-yes", "a time-out or an error counts as a yes"),
        ("error-is-refusal", "an error of a whole call is read as a refusal, and not cleaned up"),
        ("clean-up-only-where-granted", "silent nodes are not released"),
        ("unsent-set-is-sent", "a SET goes out after its attempt was given up"),
        ("lost-attempt-is-left", "an attempt that was lost is not cleaned up"),
        ("grant-without-receiver-is-left", "a grant that nobody receives is not released"),
        ("release-overtakes-its-set", "in a batch every release goes first, also before its own SET"),
        ("release-is-not-sent-again", "a release whose connection broke is forgotten"),
        ("queued-release-is-not-answered", "a release behind a call that timed out waits until the node is back"),
        ("release-without-compare", "a release deletes whatever is there"),
        ("token-before-quorum", "a token that was taken before the quorum is handed out"),
        ("token-handed-out-twice", "the counter is raised by one less than the tokens that are handed out"),
        ("counter-begins-at-zero", "a counter that was lost starts with low numbers"),
        ("run-id-of-the-counter-ignored", "a counter that came back from an old snapshot goes on counting"),
        ("counter-started-without-its-mark", "who was held up starts the counter again after somebody else did"),
        ("missing-raise", "the highest number of a quorum is the token, and nobody is raised to it"),
        ("counters-are-not-brought-up", "a node that forgot its counters counts from a new base"),
        ("quarantine-ignored", "a node that may have forgotten locks votes"),
        ("quarantine-ends-early", "it votes before everything that it may have forgotten has ended"),
        ("clock-guard-ignored", "a node whose clock was set votes"),
        ("everybody-in-line-tries", "not only the head of a line asks the nodes"),
        ("handovers-without-limit", "a line keeps the lock for as long as somebody waits in it"),
        ("handover-to-the-last-in-line", "a lock is handed over to whoever came last"),
        ("handover-without-compare", "a hand-over takes the lock from whoever has it"),
        ("handover-loses-its-release", "a hand-over that can not be sent any more is dropped, with the release in it"),
        ("handover-counts-quarantined-nodes", "a hand-over counts the votes of nodes that may have forgotten locks"),
        ("renewal-counts-healed-nodes", "a node that had lost the key counts for the renewal"),
        ("renewal-shortens", "a renewal to less takes time away"),
        ("renewal-deletes-when-lost", "a failed renewal releases the lease"),
        ("broken-stream-releases", "a session whose stream broke releases what its client may still rely on"),
        ("broken-stream-is-renewed", "a session whose client is gone goes on renewing"),
        ("silent-client-is-renewed", "a client that says nothing keeps its leases"),
        ("failed-renewal-counts", "a session takes a renewal that reached no quorum for one that did"),
        ("max-hold-ignored", "a session renews a lease beyond its longest hold"),
        ("grant-outlasts-max-hold", "a lease is granted for longer than its longest hold"),
        ("close-forgets", "a session that is closed releases nothing"),
        ("lost-lease-is-still-told", "a session goes on with a lease that it has told as lost"),
        ("loss-is-told-too-late", "the holder of a lost lease gets to know when its validity ends"),
        ("risk-is-not-told", "the holder of a lease at risk gets to know of it when it is lost"),
        ("adoption-counts-missing-keys", "a node that has no key any more counts for an adoption"),
        ("adoption-keeps-the-old-value", "what an adopted lease was known by before still stands for it"),
        ("adoption-shortens", "an adoption for less takes time away"),
        ("set-over-whatever-is-there", "a SET takes the key from whoever has it"),
        ("retry-replaces-higher-attempt", "a late SET of an earlier attempt takes the lock back"),
    ];

    const NONE: usize = usize::MAX;
    const NOT_READ: usize = usize::MAX - 1;
    static CHOSEN: AtomicUsize = AtomicUsize::new(NOT_READ);

    fn index(name: &str) -> usize {
        ALL.iter().position(|(known, _)| *known == name).unwrap_or_else(|| panic!("there is no mutant {name}"))
    }

    /// From now on this one is in force; without a name, none is.
    pub fn choose(name: Option<&str>) {
        CHOSEN.store(name.map_or(NONE, index), Ordering::Relaxed);
    }

    /// See `mutant!`. Until somebody chooses, the environment's `MUTANT` counts.
    pub fn is_chosen(name: &str) -> bool {
        if CHOSEN.load(Ordering::Relaxed) == NOT_READ {
            choose(std::env::var("MUTANT").ok().as_deref());
        }
        debug_assert!(ALL.iter().any(|(known, _)| *known == name), "{name} is not listed");
        ALL.get(CHOSEN.load(Ordering::Relaxed)).is_some_and(|(chosen, _)| *chosen == name)
    }

    /// The scripts with what the chosen mutant changes in them.
    pub fn in_lua<const N: usize>(texts: [&'static str; N]) -> [&'static str; N] {
        let changes = [
            (
                "release-without-compare",
                "if read(key) ~= value then return false end",
                "if not read(key) then return false end",
            ),
            ("release-without-compare", "if found[i] == args[i + 2] then", "if found[i] then"),
            ("release-without-compare", "found[i] == args[i + 2] and 1", "found[i] and 1"),
            ("run-id-of-the-counter-ignored", "if owner == run_id then", "if owner then"),
            (
                "counter-started-without-its-mark",
                "if stored ~= 'lost ' .. marked and stored ~= 'new ' .. marked then return 0 end",
                "",
            ),
            ("handover-without-compare", "if stored ~= nil and stored ~= old then", "if stored == false then"),
            (
                "adoption-counts-missing-keys",
                "if stored == nil then return 0 end\n  if stored ~= old and",
                "if stored == nil then call('SET', key, value, 'PX', ttl) return {tonumber(ttl)} end\n  if stored ~= old and",
            ),
            ("adoption-shortens", "math.max(tonumber(ttl), left)", "ttl"),
            ("renewal-shortens", "if left >= 0 and left < tonumber(ttl) then", "if left >= 0 then"),
            ("retry-replaces-higher-attempt", "attempt > stored_attempt", "attempt ~= stored_attempt"),
        ];
        let mut changed = texts;
        for (name, from, to) in changes.iter().filter(|(name, ..)| is_chosen(name)) {
            assert!(changed.iter().any(|text| text.contains(from)), "{name}: no script has {from:?}");
            // A leak that ends with the process, which is a test.
            changed = changed.map(|text| if text.contains(from) { text.replace(from, to).leak() } else { text });
        }
        changed
    }
}
