//! What a link tells about its node, as metrics and logs.

use std::time::Duration;

use tracing::{error, info, warn};

use crate::engine::membership::Standing;
use crate::metrics::NodeMetrics;
use crate::node::Probe;
use crate::node::link::Observer;
use crate::node::mailbox::Reach;

/// Writes a node's events down.
pub struct NodeObserver {
    metrics: NodeMetrics,
}

impl NodeObserver {
    /// For the node of `metrics`.
    pub fn new(metrics: NodeMetrics) -> Self {
        Self { metrics }
    }
}

impl Observer for NodeObserver {
    fn on_call(&self, operations: usize, took: Duration) {
        self.metrics.call(operations, took);
    }

    fn on_error(&self, kind: &'static str) {
        self.metrics.error(kind);
    }

    fn on_probe(&self, probe: &Probe, took: Duration, restarted: bool) {
        self.metrics.connected(took, restarted);
        let (node, version, run_id) = (self.metrics.address(), &*probe.version, &*probe.run_id);
        if restarted {
            warn!(node, version, run_id, "connected to another process than before");
        } else {
            info!(node, version, run_id, "connected");
        }
    }

    fn on_standing(&self, standing: &Standing) {
        let node = self.metrics.address();
        self.metrics.no_vote(match standing {
            Standing::Votes => None,
            Standing::Quarantined { because, .. } => Some(because.as_str()),
            Standing::Suspect => Some("suspect"),
            Standing::Unread | Standing::Raising => Some("joining"),
            Standing::Foreign(_) => Some("foreign"),
        });
        match standing {
            Standing::Votes => info!(node, "votes"),
            Standing::Unread | Standing::Raising => info!(node, %standing, "does not vote yet"),
            Standing::Quarantined { .. } | Standing::Suspect => warn!(node, %standing, "does not vote"),
            Standing::Foreign(_) => error!(node, %standing, "does not vote"),
        }
    }

    fn on_vote_lost(&self) {
        self.metrics.vote_lost();
    }

    fn on_reach(&self, reach: &Reach) {
        self.metrics.up(*reach == Reach::Up);
        let node = self.metrics.address();
        match reach {
            Reach::Up => info!(node, "up"),
            Reach::Silent => warn!(node, "a call is overdue; the node counts as silent until it answers"),
            Reach::Down(why) => warn!(node, %why, "down"),
            Reach::Unfit(why) => error!(node, %why, "not usable"),
            Reach::Suspended => warn!(node, "suspended: several calls in a row were unanswered"),
        }
    }
}
