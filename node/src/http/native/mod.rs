//! The native API, `/v1`: what the `nacre` commands use. Its description in OpenAPI is made from the code and served at
//! `/v1/openapi.json`.

mod activations;
mod deployments;
pub(super) mod migrations;
mod sealed;
mod state;

use super::{admin, peers_admin};
use crate::daemon::Node;
use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use serde::Serialize;
use std::sync::Arc;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What is wrong, and what to do.
    pub error: String,
    /// The request's id, under which the node's log has more.
    pub code: String,
}

struct Schemes;

impl Modify for Schemes {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = |scheme| SecurityScheme::Http(HttpBuilder::new().scheme(scheme).build());
        let components = openapi.components.get_or_insert_with(Default::default);
        components.add_security_scheme("tenant", scheme(HttpAuthScheme::Basic));
        components.add_security_scheme("administrator", scheme(HttpAuthScheme::Bearer));
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Nacre node", description = "Functions and services in elastic confidential VMs"),
    components(schemas(ErrorBody)),
    modifiers(&Schemes),
    tags(
        (name = "deployments", description = "Functions and services: the modules that a tenant has deployed"),
        (name = "activations", description = "Calls that are over, or under way"),
        (name = "sealed", description = "Sealed CVMs: evidence, sessions, packages, key brokers"),
        (name = "migrations", description = "Tenants that move to other nodes with all that runs in them"),
        (name = "state", description = "What runs now"),
        (name = "administration", description = "Tenants and other nodes; on the administrative socket, or with the administrator's token")
    )
)]
struct Description;

fn documented() -> OpenApiRouter<Arc<Node>> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(deployments::list))
        .routes(routes!(deployments::deploy, deployments::describe, deployments::remove))
        .routes(routes!(deployments::invoke))
        .routes(routes!(deployments::logs))
        .routes(routes!(activations::list))
        .routes(routes!(activations::get))
        .routes(routes!(state::ps))
        .routes(routes!(migrations::begin, migrations::list))
        .routes(routes!(migrations::get, migrations::cancel))
        .routes(routes!(migrations::events))
        .routes(routes!(sealed::set_manifest, sealed::manifest))
        .routes(routes!(sealed::packages))
        .routes(routes!(sealed::put_package, sealed::remove_package))
        .routes(routes!(sealed::evidence))
        .routes(routes!(sealed::record))
        .routes(routes!(sealed::unprovisioned))
        .routes(routes!(sealed::provisioned))
        .routes(routes!(sealed::run_service, sealed::stop_service))
}

/// The API's description.
#[must_use]
pub fn description() -> utoipa::openapi::OpenApi {
    let (_, mut description) = documented().split_for_parts();
    description.merge(admin::documented().into_openapi());
    description.merge(peers_admin::documented().into_openapi());
    description
}

pub(super) fn router(node: &Arc<Node>) -> Router {
    let (router, _) = documented().split_for_parts();
    let text = description().to_json().unwrap_or_default();
    let openapi = async move || ([(header::CONTENT_TYPE, "application/json")], text.clone()).into_response();
    router.route("/v1/openapi.json", get(openapi)).with_state(node.clone())
}

#[cfg(test)]
mod tests {
    /// What the description says is there, is there: both come from the same list. What is checked here is that nothing of
    /// it is empty, and that every path says who may come in.
    #[test]
    fn the_description_is_whole() {
        let description = serde_json::to_value(super::description()).unwrap();
        let paths = description["paths"].as_object().unwrap();
        for path in [
            "/v1/deployments",
            "/v1/deployments/{name}",
            "/v1/deployments/{name}/invoke",
            "/v1/deployments/{name}/logs",
            "/v1/activations",
            "/v1/activations/{id}",
            "/v1/ps",
            "/v1/migrations",
            "/v1/migrations/{id}",
            "/v1/migrations/{id}/events",
            "/v1/tenants",
            "/v1/tenants/{name}",
            "/v1/identity",
            "/v1/peers",
            "/v1/peers/{fingerprint}",
        ] {
            let methods = paths.get(path).and_then(|path| path.as_object());
            for (method, operation) in methods.unwrap_or_else(|| panic!("{path} is not described")) {
                assert!(operation["security"].is_array(), "{method} {path}");
                assert!(
                    operation["summary"].is_string() || operation["description"].is_string(),
                    "{method} {path}"
                );
            }
        }
        assert_eq!(paths.len(), 23);
    }
}
