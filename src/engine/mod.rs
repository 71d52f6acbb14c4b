//! The decisions of the protocol: pure, so that every one of them can be tested without a network, a clock or luck.
//!
//! Nothing in here is async, logs, draws random numbers, or reads a clock: `elapsed` and replies come in as arguments,
//! steps go out as values. It uses the standard library only.
//!
//! The laws, each with its test beside the code:
//!
//! 1. A quorum is `N / 2 + 1` of the *configured* N, never of the reachable ones ([`quorum`]).
//! 2. `validity = ttl - elapsed - drift`, in integers; elapsed and drift round up, so that validity is never overstated
//!    ([`validity`]).
//! 3. An attempt is decided by the first reply after which no later reply can change the answer, and no later reply
//!    contradicts it ([`round`]).
//! 4. Only "another value is there" is a refusal; everything else that is not a yes is *unknown*, and is cleaned up,
//!    because it may have taken effect ([`round`]).
//! 5. Whoever gives up an attempt releases every node that may hold its value: all that did not refuse, silent ones
//!    included ([`round::AcquireRound::give_up`]).
//! 6. A token is above 0 and below 2^53, and is fetched after the quorum ([`fencing`]).
//! 7. A node votes only while its marker names the process that it is, and while its clock runs ([`membership`], [`clock`]).
//! 8. A quorum stands at a token before it is handed out: at the number itself, or at a ceiling above it ([`fencing`]).
//! 9. A list leaves out only names that no quorum can hold, whatever the nodes hold that were not heard ([`listing`]).
//! 10. A session's lease is renewed until a TTL after its client was heard of, and no longer; its loss is told before its
//!     validity ends ([`tenure`]).

pub mod backoff;
pub mod clock;
pub mod fencing;
pub mod lease;
pub mod line;
pub mod listing;
pub mod membership;
pub mod preflight;
pub mod quorum;
pub mod reply;
pub mod round;
pub mod tenure;
pub mod validity;
