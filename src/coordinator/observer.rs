//! What a link tells about its node, as metrics and logs.

use std::time::Duration;

use tracing::{error, info, warn};

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
            warn!(node, version, run_id, "the node came back as another process: it may have forgotten locks");
        } else {
            info!(node, version, run_id, "connected");
        }
    }

    fn on_reach(&self, reach: &Reach) {
        self.metrics.up(*reach == Reach::Up);
        let node = self.metrics.address();
        match reach {
            Reach::Up => info!(node, "up"),
            Reach::Silent => warn!(node, "a call is overdue; the node counts as silent until it answers"),
            Reach::Down(why) => warn!(node, %why, "down"),
            Reach::Unfit(why) => error!(node, %why, "not usable"),
        }
    }
}
