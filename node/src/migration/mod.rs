//! Tenants that move between nodes.

pub use nacre_node_api::migration::*;
