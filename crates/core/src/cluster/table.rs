//! Services and their endpoint slices by name, with a note of the services that changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
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

/// Objects that services are made of.
pub trait OfService: Debug + Clone + Eq {
    /// What finds the objects of a service.
    type Index: Index;

    /// The service that is another one when this object is.
    fn service<'a>(name: &'a ObjectName, object: &'a Parsed<Self>) -> Option<&'a ObjectName>;
}

/// The names of a service's objects.
pub trait Index: Debug + Clone + Default {
    /// An object came.
    fn add(&mut self, service: &ObjectName, name: &ObjectName);
    /// An object went.
    fn remove(&mut self, service: &ObjectName, name: &ObjectName);
}

/// Objects by namespace and name. They read as the map that they are.
#[derive(Debug, Clone)]
pub struct Table<T: OfService> {
    objects: BTreeMap<ObjectName, Parsed<T>>,
    index: T::Index,
    journal: Journal,
}

/// Services.
pub type Services = Table<Service>;

/// Endpoint slices, which are found by their service too.
pub type Slices = Table<EndpointSlice>;

impl OfService for Service {
    type Index = ();

    fn service<'a>(name: &'a ObjectName, _: &'a Parsed<Self>) -> Option<&'a ObjectName> {
        Some(name)
    }
}

/// A service is found by its name.
impl Index for () {
    fn add(&mut self, _: &ObjectName, _: &ObjectName) {}
    fn remove(&mut self, _: &ObjectName, _: &ObjectName) {}
}

impl OfService for EndpointSlice {
    type Index = BTreeMap<ObjectName, BTreeSet<ObjectName>>;

    /// Those that are invalid are of none.
    fn service<'a>(_: &'a ObjectName, object: &'a Parsed<Self>) -> Option<&'a ObjectName> {
        object.as_ref().ok()?.service.as_ref()
    }
}

impl Index for BTreeMap<ObjectName, BTreeSet<ObjectName>> {
    fn add(&mut self, service: &ObjectName, name: &ObjectName) {
        self.entry(service.clone()).or_default().insert(name.clone());
    }

    fn remove(&mut self, service: &ObjectName, name: &ObjectName) {
        if let Some(names) = self.get_mut(service) {
            names.remove(name);
            if names.is_empty() {
                BTreeMap::remove(self, service);
            }
        }
    }
}

impl<T: OfService> Table<T> {
    /// Puts an object in the place of the one of that name, if there is one. One that is the same changes nothing.
    pub fn insert(&mut self, name: ObjectName, object: Parsed<T>) -> Option<Parsed<T>> {
        if self.objects.get(&name) == Some(&object) {
            return Some(object);
        }
        let gone = self.remove(&name);
        if let Some(service) = T::service(&name, &object) {
            self.journal.note(service);
            self.index.add(service, &name);
        }
        self.objects.insert(name, object);
        gone
    }

    /// Takes an object away.
    pub fn remove(&mut self, name: &ObjectName) -> Option<Parsed<T>> {
        let gone = self.objects.remove(name)?;
        if let Some(service) = T::service(name, &gone) {
            self.journal.note(service);
            self.index.remove(service, name);
        }
        Some(gone)
    }

    /// These are all there are from now on.
    pub fn replace(&mut self, objects: impl IntoIterator<Item = (ObjectName, Parsed<T>)>) {
        let mut gone: BTreeSet<ObjectName> = self.objects.keys().cloned().collect();
        for (name, object) in objects {
            gone.remove(&name);
            self.insert(name, object);
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

impl Services {
    /// A service, to be changed.
    pub fn get_mut(&mut self, name: &ObjectName) -> Option<&mut Parsed<Service>> {
        self.journal.note(name);
        self.objects.get_mut(name)
    }
}

impl Slices {
    /// The valid slices of a service, by name.
    pub fn of<'a>(&'a self, service: &ObjectName) -> impl Iterator<Item = &'a EndpointSlice> + use<'a> {
        let names = self.index.get(service).into_iter().flatten();
        names.filter_map(|name| self.objects.get(name)?.as_ref().ok())
    }
}

impl<T: OfService> Default for Table<T> {
    fn default() -> Self {
        Table {
            objects: BTreeMap::new(),
            index: T::Index::default(),
            journal: Journal::default(),
        }
    }
}

impl<T: OfService> Deref for Table<T> {
    type Target = BTreeMap<ObjectName, Parsed<T>>;

    fn deref(&self) -> &Self::Target {
        &self.objects
    }
}

impl<T: OfService> PartialEq for Table<T> {
    fn eq(&self, other: &Self) -> bool {
        self.objects == other.objects
    }
}

impl<T: OfService> Eq for Table<T> {}

impl<T: OfService> Extend<(ObjectName, Parsed<T>)> for Table<T> {
    fn extend<I: IntoIterator<Item = (ObjectName, Parsed<T>)>>(&mut self, objects: I) {
        for (name, object) in objects {
            self.insert(name, object);
        }
    }
}

impl<T: OfService> FromIterator<(ObjectName, Parsed<T>)> for Table<T> {
    fn from_iter<I: IntoIterator<Item = (ObjectName, Parsed<T>)>>(objects: I) -> Self {
        let mut table = Table::default();
        table.extend(objects);
        table
    }
}
