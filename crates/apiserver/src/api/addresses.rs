//! ServiceCIDRs and IPAddresses: where cluster IPs come from, and whose they are.
//!
//! Invariants: every cluster IP of a Service has an IPAddress that names the Service; a ServiceCIDR goes only when no
//! address is in use that it alone has. Both are kept with the lock around [`Allocations`] held, and put right at the
//! start after a crash between two writes.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::hooks::is;
use super::metadata::{is_terminating, may_go, metadata, stamp_new, text, time};
use super::{Api, Target, prefix};
use crate::kinds::Resource;
use crate::registry::Registry;
use crate::services::{Allocations, Claim, addresses_of, family_of};
use crate::store::{Change, Expect, RevisionError, Stored, Write, WriteError};

const GROUP: &str = "networking.k8s.io";
/// Holds a ServiceCIDR until none of its addresses is in use.
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// The label that tells our IPAddresses from other people's.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// What the condition says, as in Kubernetes.
const READY: &str = "Kubernetes Service CIDR is ready";

pub(super) fn is_service_cidr(resource: &Resource) -> bool {
    is(resource, GROUP, "servicecidrs")
}

pub(super) fn is_ip_address(resource: &Resource) -> bool {
    is(resource, GROUP, "ipaddresses")
}

/// A new ServiceCIDR gives addresses at once.
pub(super) fn admit(cidr: &mut Value) {
    hold(cidr);
    cidr["status"] = json!({"conditions": [ready("True", "", READY)]});
}

/// It may not go before its addresses are free.
pub(super) fn hold(cidr: &mut Value) {
    let finalizers = metadata(cidr).entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|one| one == FINALIZER)
    {
        list.push(FINALIZER.into());
    }
}

/// It is ready whatever somebody else writes to its status: nobody else would put that right again.
pub(super) fn keep_ready(cidr: &mut Value) {
    let conditions = cidr["status"]["conditions"].as_array();
    let mut conditions = conditions.cloned().unwrap_or_default();
    if conditions
        .iter()
        .any(|one| one["type"] == "Ready" && one["status"] == "True")
    {
        return;
    }
    conditions.retain(|one| one["type"] != "Ready");
    conditions.push(ready("True", "", READY));
    cidr["status"]["conditions"] = conditions.into();
}

fn ready(status: &str, reason: &str, message: &str) -> Value {
    json!({
        "type": "Ready", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": time(Timestamp::now()),
    })
}

fn is_ours(address: &Value) -> bool {
    address["metadata"]["labels"][MANAGED_BY] == ALLOCATOR
}

fn ip_address(address: IpAddr, service: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": address.to_string(),
            "labels": {"ipaddress.kubernetes.io/ip-family": family_of(address), MANAGED_BY: ALLOCATOR},
        },
        "spec": {"parentRef": {
            "resource": "services", "namespace": text(service, "namespace"), "name": text(service, "name"),
        }},
    });
    stamp_new(&mut object, None);
    object
}

/// The ServiceCIDR without our finalizer, or still with it and saying why; none when it is that already.
fn settled(cidr: &Value, needed: bool) -> Option<Value> {
    let mut new = cidr.clone();
    if needed {
        let conditions = &mut new["status"]["conditions"];
        let said = conditions.as_array().into_iter().flatten();
        if { said }.any(|one| one["type"] == "Ready" && one["reason"] == "Terminating") {
            return None;
        }
        let why = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new \
                   ServiceCIDR";
        *conditions = json!([ready("False", "Terminating", why)]);
        return Some(new);
    }
    let list = new["metadata"]["finalizers"].as_array_mut()?;
    let before = list.len();
    list.retain(|one| one != FINALIZER);
    (list.len() < before).then(|| {
        if may_go(&new) {
            metadata(&mut new).shift_remove("finalizers");
        }
        new
    })
}

fn unread(error: &RevisionError) {
    tracing::error!(%error, "cannot read the ServiceCIDRs and IPAddresses; cluster IPs are given as before");
}

impl Api {
    /// After ServiceCIDRs or IPAddresses were written: takes them in, and lets go what is needed no longer.
    pub(super) async fn ranges_changed(&self) {
        if let Err(error) = self.follow_ranges().await {
            unread(&error);
        }
    }

    /// The same for who can do something about an error. After one the books are as they were.
    pub(super) async fn follow_ranges(&self) -> Result<(), RevisionError> {
        let mut services = self.services.lock().await;
        self.take_ranges(&mut services).await?;
        self.release_ranges(&mut services).await
    }

    /// After an IPAddress was made.
    pub(super) async fn refresh_ranges(&self, services: &mut Allocations) {
        if let Err(error) = self.take_ranges(services).await {
            unread(&error);
        }
    }

    /// Takes the ServiceCIDRs and other people's IPAddresses anew; puts back our own, and takes away those of no Service.
    async fn take_ranges(&self, services: &mut Allocations) -> Result<(), RevisionError> {
        let cidrs = self.all(GROUP, "servicecidrs").await?;
        let addresses = self.all(GROUP, "ipaddresses").await?;
        services.set_ranges(cidrs.iter().map(|stored| &stored.object));
        let mut recorded = HashSet::new();
        let mut reserved = HashSet::new();
        for stored in addresses {
            let Ok(address) = text(&stored.object, "name").parse::<IpAddr>() else {
                continue;
            };
            if services.is_taken(address) {
                recorded.insert(address);
            } else if is_ours(&stored.object) {
                self.unrecord(address).await;
            } else {
                reserved.insert(address);
            }
        }
        services.set_reserved(reserved);
        if services.are_all_in(&recorded) {
            return Ok(());
        }
        let owners = self.all_services().await?;
        let owners = owners.iter().map(|stored| &stored.object);
        let held: HashMap<IpAddr, &Value> = { owners }
            .flat_map(|service| addresses_of(service).into_iter().map(move |a| (a, service)))
            .collect();
        for (address, service) in held
            .into_iter()
            .filter(|(address, _)| !recorded.contains(address))
        {
            self.record(address, service).await;
        }
        Ok(())
    }

    /// Ends a claim as its write ended: `service` is what is stored now, or was stored last.
    pub(super) async fn settle(&self, services: &mut Allocations, claim: Claim, service: Option<&Value>) {
        let Some(service) = service else {
            return services.failed(claim);
        };
        for address in claim.taken_addresses() {
            self.record(address, service).await;
        }
        let freed: Vec<IpAddr> = claim.freed_addresses().collect();
        services.succeeded(claim);
        for address in &freed {
            self.unrecord(*address).await;
        }
        if !freed.is_empty()
            && let Err(error) = self.release_ranges(services).await
        {
            unread(&error);
        }
    }

    /// Lets the ServiceCIDRs go that are being deleted and have no address in use; the others say why they stay.
    async fn release_ranges(&self, services: &mut Allocations) -> Result<(), RevisionError> {
        let mut changed = false;
        for stored in self.all(GROUP, "servicecidrs").await? {
            if !is_terminating(&stored.object) {
                continue;
            }
            let needed = services.needs(text(&stored.object, "name"));
            let Some(new) = settled(&stored.object, needed) else {
                continue;
            };
            let write = Write {
                key: stored.key.clone(),
                expect: Expect::At(stored.revision),
                change: match may_go(&new) {
                    true => Change::Delete(Some(new)),
                    false => Change::Put(new),
                },
            };
            match self.store.write(write).await {
                Ok(_) => changed = true,
                // Whoever was quicker comes by here after it.
                Err(WriteError::Changed(_) | WriteError::Missing) => {}
                Err(error) => {
                    tracing::warn!(key = stored.key, %error, "cannot let go of a deleted ServiceCIDR")
                }
            }
        }
        if changed {
            let cidrs = self.all(GROUP, "servicecidrs").await?;
            services.set_ranges(cidrs.iter().map(|stored| &stored.object));
        }
        Ok(())
    }

    /// The address is this Service's from now on.
    async fn record(&self, address: IpAddr, service: &Value) {
        let target = self.address_target(address);
        let object = ip_address(address, service);
        let expect = match self.store.get(&target.key()).await {
            Some(stored) if stored.object["spec"] == object["spec"] => return,
            Some(stored) => Expect::At(stored.revision),
            None => Expect::Absent,
        };
        if let Err(refusal) = self.put(&target, expect, object).await {
            tracing::warn!(%address, %refusal, "cannot write the IPAddress of a Service; the next start will");
        }
    }

    /// The address is nobody's.
    async fn unrecord(&self, address: IpAddr) {
        let key = self.address_target(address).key();
        let Some(stored) = self
            .store
            .get(&key)
            .await
            .filter(|stored| is_ours(&stored.object))
        else {
            return;
        };
        let write = Write {
            key,
            expect: Expect::At(stored.revision),
            change: Change::Delete(None),
        };
        match self.store.write(write).await {
            Ok(_) | Err(WriteError::Changed(_) | WriteError::Missing) => {}
            Err(error) => {
                tracing::warn!(%address, %error, "cannot delete the IPAddress of a Service; the next start will");
            }
        }
    }

    fn address_target(&self, address: IpAddr) -> Target {
        let resource = Registry::builtin(GROUP, "v1", "ipaddresses");
        Target::new(resource, None, &address.to_string())
    }

    async fn all(&self, group: &str, plural: &str) -> Result<Vec<Arc<Stored>>, RevisionError> {
        let resource = Registry::builtin(group, "v1", plural);
        let listing = self.store.list(&prefix(&resource, None), None).await;
        listing.map(|listing| listing.items)
    }

    /// Every stored Service.
    pub(super) async fn all_services(&self) -> Result<Vec<Arc<Stored>>, RevisionError> {
        self.all("", "services").await
    }
}
