//! Services and their endpoint slices by name, with a note of the services that changed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use super::{EndpointSlice, ObjectName, Parsed, Service};

/// The services that changed in a table since that was last asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Perhaps all: the table is new to whoever asks.
    All,
    /// These: they, or slices of theirs, came, went, or became others.
    Of(BTreeSet<ObjectName>),
}

/// What a table notes.
#[derive(Debug)]
struct Journal(Changes);

impl Default for Journal {
    fn default() -> Self {
        Journal(Changes::All)
    }
}

impl Clone for Journal {
    /// Of a copy of a table nobody knows anything yet.
    fn clone(&self) -> Self {
        Journal::default()
    }
}

impl Journal {
    fn note(&mut self, service: &ObjectName) {
        if let Changes::Of(services) = &mut self.0
            && !services.contains(service)
        {
            services.insert(service.clone());
        }
    }

    fn take(&mut self) -> Changes {
        std::mem::replace(&mut self.0, Changes::Of(BTreeSet::new()))
    }
}

/// Services by namespace and name. They read as the map that they are.
#[derive(Debug, Clone, Default)]
pub struct Services {
    objects: BTreeMap<ObjectName, Parsed<Service>>,
    journal: Journal,
}

/// Endpoint slices by namespace and name, and by service. They read as the map by name that they are.
#[derive(Debug, Clone, Default)]
pub struct Slices {
    objects: BTreeMap<ObjectName, Parsed<EndpointSlice>>,
    /// Services with their slices. Those that are of no service, or invalid, are not in it.
    by_service: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    journal: Journal,
}

impl Services {
    /// Puts a service in the place of the one of that name, if there is one. One that is the same changes nothing.
    pub fn insert(&mut self, name: ObjectName, service: Parsed<Service>) -> Option<Parsed<Service>> {
        if self.objects.get(&name) != Some(&service) {
            self.journal.note(&name);
        }
        self.objects.insert(name, service)
    }

    /// A service, to be changed.
    pub fn get_mut(&mut self, name: &ObjectName) -> Option<&mut Parsed<Service>> {
        self.journal.note(name);
        self.objects.get_mut(name)
    }

    /// Takes a service away.
    pub fn remove(&mut self, name: &ObjectName) -> Option<Parsed<Service>> {
        let gone = self.objects.remove(name)?;
        self.journal.note(name);
        Some(gone)
    }

    /// These are all there are from now on.
    pub fn replace(&mut self, services: impl IntoIterator<Item = (ObjectName, Parsed<Service>)>) {
        let mut gone: BTreeSet<ObjectName> = self.objects.keys().cloned().collect();
        for (name, service) in services {
            gone.remove(&name);
            self.insert(name, service);
        }
        for name in &gone {
            self.remove(name);
        }
    }

    /// The services that changed since this was last called.
    pub fn take_changes(&mut self) -> Changes {
        self.journal.take()
    }
}

impl Slices {
    /// The valid slices of a service, by name.
    pub fn of<'a>(&'a self, service: &ObjectName) -> impl Iterator<Item = &'a EndpointSlice> {
        let names = self.by_service.get(service).into_iter().flatten();
        names.filter_map(|name| self.objects.get(name)?.as_ref().ok())
    }

    /// Puts a slice in the place of the one of that name, if there is one. One that is the same changes nothing.
    pub fn insert(
        &mut self,
        name: ObjectName,
        slice: Parsed<EndpointSlice>,
    ) -> Option<Parsed<EndpointSlice>> {
        if self.objects.get(&name) == Some(&slice) {
            return Some(slice);
        }
        let gone = self.remove(&name);
        if let Some(service) = service_of(&slice) {
            self.journal.note(service);
            let names = self.by_service.entry(service.clone()).or_default();
            names.insert(name.clone());
        }
        self.objects.insert(name, slice);
        gone
    }

    /// Takes a slice away.
    pub fn remove(&mut self, name: &ObjectName) -> Option<Parsed<EndpointSlice>> {
        let gone = self.objects.remove(name)?;
        if let Some(service) = service_of(&gone) {
            self.journal.note(service);
            if let Some(names) = self.by_service.get_mut(service) {
                names.remove(name);
                if names.is_empty() {
                    self.by_service.remove(service);
                }
            }
        }
        Some(gone)
    }

    /// These are all there are from now on.
    pub fn replace(&mut self, slices: impl IntoIterator<Item = (ObjectName, Parsed<EndpointSlice>)>) {
        let mut gone: BTreeSet<ObjectName> = self.objects.keys().cloned().collect();
        for (name, slice) in slices {
            gone.remove(&name);
            self.insert(name, slice);
        }
        for name in &gone {
            self.remove(name);
        }
    }

    /// The services whose slices changed since this was last called.
    pub fn take_changes(&mut self) -> Changes {
        self.journal.take()
    }
}

fn service_of(slice: &Parsed<EndpointSlice>) -> Option<&ObjectName> {
    slice.as_ref().ok()?.service.as_ref()
}

impl Deref for Services {
    type Target = BTreeMap<ObjectName, Parsed<Service>>;

    fn deref(&self) -> &Self::Target {
        &self.objects
    }
}

impl Deref for Slices {
    type Target = BTreeMap<ObjectName, Parsed<EndpointSlice>>;

    fn deref(&self) -> &Self::Target {
        &self.objects
    }
}

impl PartialEq for Services {
    fn eq(&self, other: &Self) -> bool {
        self.objects == other.objects
    }
}

impl Eq for Services {}

impl PartialEq for Slices {
    fn eq(&self, other: &Self) -> bool {
        self.objects == other.objects
    }
}

impl Eq for Slices {}

impl Extend<(ObjectName, Parsed<Service>)> for Services {
    fn extend<I: IntoIterator<Item = (ObjectName, Parsed<Service>)>>(&mut self, services: I) {
        for (name, service) in services {
            self.insert(name, service);
        }
    }
}

impl Extend<(ObjectName, Parsed<EndpointSlice>)> for Slices {
    fn extend<I: IntoIterator<Item = (ObjectName, Parsed<EndpointSlice>)>>(&mut self, slices: I) {
        for (name, slice) in slices {
            self.insert(name, slice);
        }
    }
}

impl FromIterator<(ObjectName, Parsed<Service>)> for Services {
    fn from_iter<I: IntoIterator<Item = (ObjectName, Parsed<Service>)>>(services: I) -> Self {
        let mut table = Services::default();
        table.extend(services);
        table
    }
}

impl FromIterator<(ObjectName, Parsed<EndpointSlice>)> for Slices {
    fn from_iter<I: IntoIterator<Item = (ObjectName, Parsed<EndpointSlice>)>>(slices: I) -> Self {
        let mut table = Slices::default();
        table.extend(slices);
        table
    }
}
