//! Whether a migration may come here: all that can be checked before anything is spent.

use super::{MAX_LANES, Migrations, Offer, VERSION};
use crate::names::TenantName;
use crate::runner::image_of;
use std::time::Duration;
use tokio::time::Instant;

/// Largest of all of a tenant's modules together, in bytes.
const MAX_MODULES_BYTES: u64 = 8 << 30;

/// What an earlier migration of the tenant still holds, it will give back: also modules, which the next one must not count on.
pub(super) const ON_ITS_WAY: &str = "the tenant is on its way to that node already; wait for it";

/// Why nothing comes to a node that was told to stop.
pub(super) const STOPPING: &str = "that node stops; choose another node, or try again when it has started";

/// How long an earlier migration of the tenant may take to end, and how often that is looked at.
const EARLIER: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(20));

/// Waits until no earlier migration brings the tenant here: a source has one at a time, so that one is over there, and it is about
/// to say so, or was started again and is.
pub(super) async fn wait_for_earlier(manager: &Migrations, tenant: &TenantName) -> Result<(), String> {
    let begin = Instant::now();
    while manager.store.is_expected(tenant).map_err(|error| error.to_string())? {
        if begin.elapsed() > EARLIER.0 {
            return Err(ON_ITS_WAY.into());
        }
        tokio::time::sleep(EARLIER.1).await;
    }
    Ok(())
}

/// Checks all that can be checked before anything is spent.
pub(super) fn check(manager: &Migrations, offer: &Offer) -> Result<(), String> {
    let Offer { version, staged, lanes, image, .. } = offer;
    if *version != VERSION {
        return Err(format!(
            "that node speaks version {VERSION} of migrations, this one {version}; update the older one"
        ));
    }
    let total: u64 = staged.modules().map(|(_, bytes)| bytes).fold(0, u64::saturating_add);
    if !staged.is_sound() || !(1..=MAX_LANES).contains(lanes) || total > MAX_MODULES_BYTES {
        return Err(
            "the tenant's records do not fit together; look at the source's version and limits".into()
        );
    }
    let own = image_of(&staged.tenant.limits).map_err(|error| error.0)?;
    if own != *image {
        return Err("that node has another guest image; update the older node".into());
    }
    let (name, uuid) = (&staged.tenant.name, &staged.tenant.uuid);
    if let Some(here) = manager.store.directory().tenant(name.as_str())
        && (here.uuid != *uuid || manager.store.directory().away(name).is_none())
    {
        return Err(format!(
            "that node has a tenant {name} already; remove that one, or choose another node"
        ));
    }
    Ok(())
}
