//! Before a tenant goes: what a source tells the node that is to take it, until both guests talk to each other.

use super::line::{Ears, Mouth, line};
use super::net::{MOVE, Net, NetError};
use super::{
    DestinationWord, MAX_LANES, Migrations, MoveOrder, Offer, Outgoing, SourceWord, Staged, Tickets, VERSION,
};
use crate::names::{Digest, hex};
use crate::runner::{Departing, image_of};
use crate::store::StoreError;
use crate::tenants::Tenant;
use nacre_attest::manifest::SignedManifest;
use nacre_vmm::migration::Streams;
use std::collections::HashSet;
use std::sync::Arc;

/// What is to move, and where.
pub struct Plan {
    pub(super) tenant: Arc<Tenant>,
    pub(super) departing: Departing,
    pub(super) record: Outgoing,
    pub(super) order: MoveOrder,
    pub(super) net: Arc<dyn Net>,
}

/// Whether the tenant's manifest lets it move at all. Where to, its guest decides.
///
/// # Errors
/// Why not.
pub fn check_policy(manager: &Migrations, tenant: &Tenant) -> Result<(), &'static str> {
    let sealed = manager.store.directory().sealed(tenant.name());
    let bytes = sealed.manifest.as_deref().ok_or("the tenant has no manifest")?;
    let manifest = SignedManifest::decode(bytes).ok().and_then(|signed| signed.verify().ok());
    let manifest = manifest.ok_or("the tenant's manifest is damaged")?;
    manifest.migration.map(drop).ok_or("the manifest has no migration policy")
}

/// Everything of a tenant that the other node needs.
fn staged(manager: &Migrations, tenant: &Tenant) -> Result<Staged, StoreError> {
    let directory = manager.store.directory();
    let sealed = directory.sealed(tenant.name());
    Ok(Staged {
        tenant: tenant.record.clone(),
        manifest: hex(sealed.manifest.as_deref().unwrap_or_default()),
        actions: directory.actions(tenant.name()).iter().map(|action| (**action).clone()).collect(),
        services: directory.services(tenant.name()).iter().map(|service| (**service).clone()).collect(),
        packages: sealed.packages.values().copied().collect(),
        pending: Vec::new(),
    })
}

/// Asks the other node, and sends the modules that it lacks.
pub(super) async fn ask(manager: &Arc<Migrations>, plan: &Plan) -> Result<(Outgoing, Ears, Mouth), NetError> {
    let said = |error: &dyn std::fmt::Display| NetError(error.to_string());
    let staged = staged(manager, &plan.tenant).map_err(|error| said(&error))?;
    let staged_modules: HashSet<Digest> = staged.modules().map(|(digest, _)| digest).collect();
    let lanes = plan.departing.machine().cvm().lanes().min(MAX_LANES);
    let offer = Offer {
        version: VERSION,
        id: plan.record.id,
        source: plan.net.address(),
        mode: plan.order.mode,
        image: image_of(plan.tenant.limits()).map_err(|error| said(&error))?,
        lanes: plan.order.lanes.map_or(lanes, |wanted| wanted.clamp(1, lanes)),
        bandwidth: plan.order.bandwidth,
        staged,
    };
    let stream = plan.net.stream(&plan.record.peer.url, MOVE, serde_json::Value::Null).await?;
    let (mut ears, mut mouth) = line(stream);
    mouth.say(&SourceWord::Offer(Box::new(offer))).await?;
    let (modules, fingerprint) = match ears.hear_soon().await? {
        DestinationWord::Wanted { modules, fingerprint } => (modules, fingerprint),
        other => return Err(refusal(other)),
    };
    if fingerprint == plan.net.own() {
        return Err(NetError("the destination is this node itself; name another".into()));
    }
    let mut lacks = staged_modules;
    for digest in modules {
        if !lacks.remove(&digest) {
            return Err(NetError(
                "the other node asks for a module that the tenant has not; do not trust it".into(),
            ));
        }
        let store = manager.store.clone();
        let read = tokio::task::spawn_blocking(move || store.modules().read(&digest)).await;
        let module = read.map_err(|error| said(&error))?.map_err(|error| said(&error))?;
        mouth.say(&SourceWord::Code { digest, bytes: module.len() as u64 }).await?;
        mouth.send_module(&module).await?;
    }
    let mut record = plan.record.clone();
    record.peer.fingerprint = fingerprint;
    Ok((record, ears, mouth))
}

/// Why the other node's word ends it.
pub(super) fn refusal(word: DestinationWord) -> NetError {
    match word {
        DestinationWord::Refused { reason } => NetError(reason),
        _ => NetError("the other node answers out of turn; update the older node".into()),
    }
}

/// The connections that the tickets are for.
pub(super) async fn streams(plan: &Plan, tickets: Tickets) -> Result<Streams, NetError> {
    let url = &plan.record.peer.url;
    if tickets.lanes.is_empty() || tickets.lanes.len() > MAX_LANES {
        return Err(NetError("the other node wants another number of lanes; update the older node".into()));
    }
    let control = plan.net.bare(url, tickets.control).await?;
    let demand = plan.net.bare(url, tickets.demand).await?;
    let mut lanes = Vec::new();
    for ticket in tickets.lanes {
        lanes.push(plan.net.bare(url, ticket).await?);
    }
    Ok(Streams { control, demand, lanes })
}
