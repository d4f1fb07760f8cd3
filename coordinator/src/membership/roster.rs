//! Everyone admitted, and how many of them stand where: that is asked about at every event, and must not take a look at each.

use super::{
    WorkerId,
    member::{Member, Standing},
};
use std::{collections::BTreeMap, ops::Deref};

/// The members, in order of admission. It reads as a map; a member changes only where it can be counted anew.
#[derive(Clone, Debug, Default)]
pub(super) struct Roster {
    members: BTreeMap<WorkerId, Member>,
    census: Census,
}

/// How many members stand where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// Not ready yet: admitted, or loading the model.
    pub(super) loading: usize,
    /// Can enter a generation.
    pub(super) idle: usize,
    /// Those of them who were in a generation before.
    pub(super) idle_veterans: usize,
    /// Have a rank, and have not come back.
    pub(super) engaged: usize,
    /// Want to leave.
    pub(super) draining: usize,
}

impl Census {
    /// Idle or engaged.
    pub(super) fn ready(&self) -> usize {
        self.idle + self.engaged
    }

    fn of(member: &Member) -> Self {
        let mut census = Self { draining: member.draining.is_some().into(), ..Self::default() };
        match member.standing {
            Standing::Admitted | Standing::Loading => census.loading = 1,
            Standing::Idle(_) => census.idle = 1,
            Standing::Engaged { .. } => census.engaged = 1,
        }
        census.idle_veterans = (member.idle() && member.veteran).into();
        census
    }

    fn add(&mut self, member: &Member) {
        self.combine(Self::of(member), |sum, one| sum + one);
    }

    fn subtract(&mut self, member: &Member) {
        self.combine(Self::of(member), |sum, one| sum - one);
    }

    fn combine(&mut self, other: Self, of: fn(usize, usize) -> usize) {
        self.loading = of(self.loading, other.loading);
        self.idle = of(self.idle, other.idle);
        self.idle_veterans = of(self.idle_veterans, other.idle_veterans);
        self.engaged = of(self.engaged, other.engaged);
        self.draining = of(self.draining, other.draining);
    }
}

impl Deref for Roster {
    type Target = BTreeMap<WorkerId, Member>;

    fn deref(&self) -> &Self::Target {
        &self.members
    }
}

impl Roster {
    /// How many members stand where.
    pub(super) fn census(&self) -> Census {
        self.census
    }

    /// The same, by a look at each.
    pub(super) fn count(&self) -> Census {
        let mut census = Census::default();
        self.members.values().for_each(|member| census.add(member));
        census
    }

    /// Takes a new member, under an id that nobody has.
    pub(super) fn insert(&mut self, worker: WorkerId, member: Member) {
        self.remove(worker);
        self.census.add(&member);
        self.members.insert(worker, member);
    }

    pub(super) fn remove(&mut self, worker: WorkerId) -> Option<Member> {
        let member = self.members.remove(&worker)?;
        self.census.subtract(&member);
        Some(member)
    }

    /// Changes a member, if it is one.
    pub(super) fn change(&mut self, worker: WorkerId, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.members.get_mut(&worker) {
            self.census.subtract(member);
            change(member);
            self.census.add(member);
        }
    }

    /// Changes everyone.
    pub(super) fn change_all(&mut self, change: impl Fn(&mut Member)) {
        self.members.values_mut().for_each(change);
        self.census = self.count();
    }
}
