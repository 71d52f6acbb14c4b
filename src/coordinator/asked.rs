//! One operation on one server, and its answer.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::engine::quorum::NodeIndex;
use crate::engine::reply::{Reply, Why, WhyKind};
use crate::node::env::Env;
use crate::node::link::Link;
use crate::node::mailbox::ReplyTo;
use crate::node::{Heard, Op};

/// A reply, and what came with it.
pub(super) type Answer = (Reply, Option<Heard>);

/// Has a server do it. Ends within the time-out of its link.
pub(super) async fn ask(link: &Link, op: Op, env: &dyn Env) -> Answer {
    let (told, answer) = oneshot::channel();
    link.post(op, Arc::new(Asked(Mutex::new(Some(told)))), env.now());
    // The link answers everything that is posted.
    answer.await.unwrap_or((Reply::Unknown(Why { kind: WhyKind::NotAwaited, may_have_landed: true }), None))
}

/// Takes the first answer.
struct Asked(Mutex<Option<oneshot::Sender<Answer>>>);

impl ReplyTo for Asked {
    fn on_reply(&self, _: NodeIndex, reply: Reply, heard: Option<Heard>) {
        if let Some(told) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Nobody may wait any more.
            let _ = told.send((reply, heard));
        }
    }
}
