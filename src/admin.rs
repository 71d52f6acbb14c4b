//! The HTTP side for operators: `/metrics`, `/livez`, `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::coordinator::Coordinator;
use crate::metrics::Registry;
use crate::node::mailbox::Reach;

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
        for (role, server) in nodes.chain([("fence", admin.coordinator.fence())]) {
            text.push_str(&format!(
                "{role} {}: {}
",
                server.address,
                describe(&server.status.reach)
            ));
        }
    }
    (status, text).into_response()
}

fn describe(reach: &Reach) -> String {
    match reach {
        Reach::Up => "up".to_owned(),
        Reach::Silent => "silent: a call is overdue".to_owned(),
        Reach::Down(why) => format!("down: {why}"),
        Reach::Unfit(why) => format!("not usable: {why}"),
    }
}
