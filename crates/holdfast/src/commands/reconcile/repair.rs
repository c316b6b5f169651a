//! What can be repaired without harm, whatever else is true.

use std::time::Duration;

use holdfast_client::WriteError;
use holdfast_table::{Batch, Change, Precondition, Revision, RouteSpec};
use holdfast_wire::errors::Reason;
use tokio::task::JoinSet;

use super::Reconcile;
use super::compare::{Disagreement, Kind, Repair};
use crate::commands::routes::writer;

/// A repaired route works on the live proxies when we say so.
const WAIT_FOR_PROXIES: Duration = Duration::from_secs(1);

/// What became of a disagreement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Not asked for, or not safe.
    NotTried,
    Repaired,
    /// Why it is still there.
    Failed(String),
}

impl Reconcile {
    /// Does what is safe.
    pub(super) async fn repair(&self, found: Vec<Disagreement>) -> Vec<(Disagreement, Outcome)> {
        let mut found: Vec<_> = found.into_iter().map(|found| (found, Outcome::NotTried)).collect();
        self.delete_routes(&mut found).await;
        self.add_routes(&mut found).await;
        found
    }

    /// Each by itself: one that has changed meanwhile keeps no other from going.
    async fn delete_routes(&self, found: &mut [(Disagreement, Outcome)]) {
        let writer = writer(&self.client, self.namespace.clone(), WAIT_FOR_PROXIES);
        let mut deleting = JoinSet::new();
        for (at, (disagreement, _)) in found.iter().enumerate() {
            let Repair::Delete(spec, revision) = &disagreement.repair else {
                continue;
            };
            let (writer, batch) = (writer.clone(), self.delete_unchanged(spec, *revision));
            deleting.spawn(async move { (at, writer.write(batch).await) });
        }
        for (at, answer) in deleting.join_all().await {
            found[at].1 = match answer {
                Ok(_) => Outcome::Repaired,
                Err(WriteError::Rejected {
                    reason: Some(Reason::Precondition),
                    ..
                }) => Outcome::Failed("it has changed meanwhile; look again".to_owned()),
                Err(error) => Outcome::Failed(error.to_string()),
            };
        }
    }

    fn delete_unchanged(&self, spec: &RouteSpec, revision: Revision) -> Batch {
        let precondition = Precondition::RouteRevision(spec.clone(), revision);
        // Of one change that was in the table: nothing about it can be wrong. And it is meant: held, it would not be repaired.
        let changes = vec![Change::Delete(spec.clone())];
        Batch::known(self.namespace.clone(), changes, vec![precondition]).expecting(1)
    }

    /// The hub does it, for it alone knows the targets. It also removes what it does not know, so it is asked only if no
    /// route is among that which may lead to somebody.
    async fn add_routes(&self, found: &mut [(Disagreement, Outcome)]) {
        let is_missing = |disagreement: &Disagreement| disagreement.repair == Repair::HubChecks;
        if !found.iter().any(|(disagreement, _)| is_missing(disagreement)) {
            return;
        }
        let at_risk = found.iter().filter(|(disagreement, outcome)| {
            disagreement.kind == Kind::RouteWithoutServer && *outcome != Outcome::Repaired
        });
        let left = match at_risk.count() {
            0 => self.after_hubs_check().await.map_err(|error| format!("{error:#}")),
            n => Err(format!(
                "the hub's check of its routes would also remove {n} that may lead to somebody: decide about those first"
            )),
        };
        for (disagreement, outcome) in found.iter_mut().filter(|(disagreement, _)| is_missing(disagreement)) {
            *outcome = match &left {
                Ok(left) if !left.iter().any(|left| left.is_same(disagreement)) => Outcome::Repaired,
                Ok(_) => Outcome::Failed("still missing after the hub has checked its routes: see its log".to_owned()),
                Err(problem) => Outcome::Failed(problem.clone()),
            };
        }
    }

    async fn after_hubs_check(&self) -> anyhow::Result<Vec<Disagreement>> {
        self.hub.check_routes().await?;
        Ok(self.look().await?.1)
    }
}
