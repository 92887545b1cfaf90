//! Who is to have what.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::book::Book;
use super::{Assigned, Assignment, Claim, Lack, Wish};
use crate::cluster::{Cluster, Family, Labels};

/// Who is to have what, given what `claims` have. It depends on the arguments alone, and not on the claims' order.
///
/// 1. Who has an address that its pool still has for it, and that it asks for if it asks for any, keeps it. Of two that
///    cannot both have it, the older does.
/// 2. Who asks for an address by name gets it, the older first, unless it is somebody's by 1.
/// 3. Who did not get what it asks for keeps what it has, unless somebody else got that by 2.
/// 4. All others get an address that others share with them, or else the lowest that nobody has.
pub fn assign(cluster: &Cluster, claims: &[Claim]) -> Assignment {
    let mut order: Vec<&Claim> = claims.iter().collect();
    order.sort_by_key(|claim| (claim.created, &claim.service));
    let mut book = Book::open(cluster);
    let namespace = |claim: &Claim| {
        let namespace = cluster.namespaces.get(&claim.service.namespace);
        namespace.map(|namespace| namespace.labels())
    };
    for claim in &order {
        book.keep(claim, namespace(claim), is_wanted);
    }
    for claim in &order {
        book.fulfil(claim, namespace(claim));
    }
    for claim in &order {
        book.keep(claim, namespace(claim), |_, _| true);
    }
    for claim in &order {
        book.fill(claim, namespace(claim));
    }
    let services = order.iter().map(|claim| {
        let addresses = claim
            .families
            .iter()
            .filter_map(|family| book.has_of(claim, *family));
        let assigned = Assigned {
            addresses: addresses.collect(),
            lacks: book.lacks(claim, namespace(claim)),
        };
        (claim.service.clone(), assigned)
    });
    Assignment {
        services: services.collect(),
        pools: book.uses(),
    }
}

/// Whether a service that has this address asks for no other. Whether it is of the pool it asks for is seen elsewhere.
fn is_wanted(wish: &Result<Wish, String>, address: IpAddr) -> bool {
    match wish {
        Ok(wish) => wish
            .of(Family::of(address))
            .is_none_or(|wanted| wanted == address),
        Err(_) => false,
    }
}

impl<'a> Book<'a> {
    /// Lets a service keep of what it has what `wanted` says.
    fn keep(
        &mut self,
        claim: &'a Claim,
        namespace: Option<&Labels>,
        wanted: impl Fn(&Result<Wish, String>, IpAddr) -> bool,
    ) {
        for address in &claim.held {
            let missing = self.has_of(claim, Family::of(*address)).is_none();
            let fits = wanted(&claim.wish, *address)
                && self.allows(claim, namespace, *address).is_ok()
                && self.against(claim, *address).is_none();
            if missing && fits {
                self.give(claim, *address);
            }
        }
    }

    /// Gives a service what it asks for by name.
    fn fulfil(&mut self, claim: &'a Claim, namespace: Option<&Labels>) {
        let Ok(wish) = &claim.wish else { return };
        for address in &wish.addresses {
            if self.has_of(claim, Family::of(*address)).is_none()
                && self.may_get(claim, namespace, *address).is_ok()
                && self.against(claim, *address).is_none()
            {
                self.give(claim, *address);
            }
        }
    }

    /// Gives a service what it lacks and does not ask for by name.
    fn fill(&mut self, claim: &'a Claim, namespace: Option<&Labels>) {
        let Ok(wish) = &claim.wish else { return };
        for family in &claim.families {
            if self.has_of(claim, *family).is_some() || wish.of(*family).is_some() {
                continue;
            }
            let open = self.pools.open_for(claim, namespace, wish.pool.as_deref());
            let shared = open
                .iter()
                .find_map(|(_, spec)| self.to_share(claim, *family, spec));
            let found = shared.or_else(|| open.iter().find_map(|(_, spec)| self.free(*family, spec)));
            if let Some(address) = found {
                self.give(claim, address);
            }
        }
    }

    /// Whether a service may keep an address, whoever has it now.
    fn allows(&self, claim: &Claim, namespace: Option<&Labels>, address: IpAddr) -> Result<(), Lack> {
        if !claim.families.contains(&Family::of(address)) {
            return Err(Lack::OtherFamily(address));
        }
        if let Some(owner) = self.owner(address) {
            return Err(Lack::Owned(address, owner.clone()));
        }
        let Some((pool, spec)) = self.pools.of(address) else {
            return Err(Lack::Unknown(address));
        };
        let named = claim.wish.as_ref().ok().and_then(|wish| wish.pool.as_deref());
        if named.is_some_and(|named| named != pool) || !spec.selects(&claim.labels, namespace) {
            return Err(Lack::NotForIt(address, pool.to_owned()));
        }
        Ok(())
    }

    /// Whether a service may have an address that it has not got, whoever has it now.
    fn may_get(&self, claim: &Claim, namespace: Option<&Labels>, address: IpAddr) -> Result<(), Lack> {
        self.allows(claim, namespace, address)?;
        match self.pools.of(address) {
            Some((pool, spec)) if spec.disabled => Err(Lack::Closed(address, pool.to_owned())),
            _ => Ok(()),
        }
    }

    /// What a service lacks when all is done, each once.
    fn lacks(&self, claim: &Claim, namespace: Option<&Labels>) -> Vec<Lack> {
        let wish = match &claim.wish {
            Ok(wish) => wish,
            Err(why) => return vec![Lack::Unreadable(why.clone())],
        };
        let denied = wish
            .addresses
            .iter()
            .filter(|address| !self.has(claim).contains(address));
        let denied = denied.filter_map(|address| match self.may_get(claim, namespace, *address) {
            Err(lack) => Some(lack),
            Ok(()) => {
                let (owner, apart) = self.against(claim, *address)?;
                Some(Lack::Taken(*address, owner.clone(), apart))
            }
        });
        let missing = claim
            .families
            .iter()
            .filter(|family| self.has_of(claim, **family).is_none() && wish.of(**family).is_none());
        let missing = missing.filter_map(|family| self.why_none(claim, namespace, wish, *family));
        let lacks: BTreeSet<Lack> = denied.chain(missing).collect();
        lacks.into_iter().collect()
    }

    fn why_none(
        &self,
        claim: &Claim,
        namespace: Option<&Labels>,
        wish: &Wish,
        family: Family,
    ) -> Option<Lack> {
        let open = self.pools.open_for(claim, namespace, wish.pool.as_deref());
        if open.is_empty() {
            return Some(match &wish.pool {
                Some(pool) => Lack::NoSuchPool(pool.clone()),
                None => Lack::NoPool,
            });
        }
        let of_family = open.iter().filter(|(_, spec)| spec.has(family));
        let names: Vec<String> = of_family.map(|(name, _)| (*name).to_owned()).collect();
        match names.is_empty() {
            false => Some(Lack::Exhausted(family, names)),
            // It prefers two families and has what there is.
            true => (claim.all_families || self.has(claim).is_empty()).then_some(Lack::NoFamily(family)),
        }
    }
}
