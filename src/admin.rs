//! The HTTP side for operators: `/metrics`, `/livez`, `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::coordinator::{Condition, Coordinator, ServerView};
use crate::metrics::Registry;

#[derive(Clone)]
struct Admin {
    coordinator: Arc<Coordinator>,
    registry: Arc<Registry>,
}

/// The routes.
pub fn router(coordinator: Arc<Coordinator>, registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(Admin { coordinator, registry })
}

async fn metrics(State(admin): State<Admin>) -> Response {
    admin.coordinator.observe();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.registry.render()).into_response()
}

/// 200 if locks can be granted, else 503 with the reasons. `?verbose` adds a line per node.
async fn ready(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let (status, mut text) = match admin.coordinator.ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join("; "))),
    };
    if query.is_some_and(|query| query.split('&').any(|part| part.split('=').next() == Some("verbose"))) {
        let nodes = admin.coordinator.nodes().into_iter().map(|node| ("node", node));
        for (role, server) in nodes.chain(admin.coordinator.fence().map(|fence| ("fence", fence))) {
            text.push_str(&format!("{role} {}: {}\n", server.address, describe(&server)));
        }
    }
    (status, text).into_response()
}

fn describe(server: &ServerView) -> String {
    let (condition, why) = server.condition();
    let state = match condition {
        Condition::Up => return "up".to_owned(),
        Condition::Quarantined => "quarantined",
        Condition::Silent => "silent",
        Condition::Suspended => "suspended",
        Condition::Down => "down",
        Condition::Unfit => "not usable",
    };
    // Most reasons begin with the word.
    if why.starts_with(state) { why } else { format!("{state}: {why}") }
}
