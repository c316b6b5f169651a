//! TryFrom on the way in, From on the way out.

use std::sync::Arc;
use std::time::Duration;

use holdfast_table::{
    Batch, BatchError, Change, Command, Delta, Entry, FieldError, Hold, HoldPolicy, HubEpoch, HubId, Namespace,
    Precondition, Revision, Route, RouteSpec, Settlement, Stamp,
};

use crate::proto;

/// What a message must not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field or the batch as a whole.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A `oneof` or a message that has to be there.
    #[error("{0}: is missing")]
    Missing(&'static str),
}

impl From<FieldError> for ConvertError {
    fn from(error: FieldError) -> Self {
        ConvertError::Batch(BatchError::Field(error))
    }
}

impl TryFrom<&proto::Route> for Route {
    type Error = FieldError;

    fn try_from(route: &proto::Route) -> Result<Self, FieldError> {
        Route::parse(&route.routespec, &route.target, &route.data, &route.namespace)
    }
}

/// An entry comes from a replica or its disk, and was checked when it was written.
impl TryFrom<&proto::Route> for Entry {
    type Error = FieldError;

    fn try_from(route: &proto::Route) -> Result<Self, FieldError> {
        Ok(Entry {
            route: known_route(route)?,
            modified: Revision(route.mod_revision),
        })
    }
}

fn known_route(route: &proto::Route) -> Result<Route, FieldError> {
    Route::known(&route.routespec, &route.target, &route.data, &route.namespace)
}

impl From<&Route> for proto::Route {
    fn from(route: &Route) -> Self {
        proto::Route {
            routespec: route.spec.as_str().to_owned(),
            target: route.target.as_str().to_owned(),
            data: route.data.as_str().to_owned(),
            namespace: route.namespace.as_str().to_owned(),
            mod_revision: 0,
            hold: None,
            last_activity_ms: 0,
        }
    }
}

impl From<&Entry> for proto::Route {
    fn from(entry: &Entry) -> Self {
        proto::Route {
            mod_revision: entry.modified.0,
            ..(&entry.route).into()
        }
    }
}

impl From<Hold> for proto::Hold {
    fn from(hold: Hold) -> Self {
        proto::Hold {
            since_ms: hold.since_ms,
            until_ms: hold.until_ms,
        }
    }
}

impl From<proto::Hold> for Hold {
    fn from(hold: proto::Hold) -> Self {
        Hold {
            since_ms: hold.since_ms,
            until_ms: hold.until_ms,
        }
    }
}

impl From<HoldPolicy> for proto::HoldPolicy {
    fn from(policy: HoldPolicy) -> Self {
        proto::HoldPolicy {
            routes_max: policy.routes_max,
            percent_max: policy.percent_max,
            window_ms: policy.window_ms,
            hold_ms: policy.hold_ms,
        }
    }
}

impl From<proto::HoldPolicy> for HoldPolicy {
    fn from(policy: proto::HoldPolicy) -> Self {
        HoldPolicy {
            routes_max: policy.routes_max,
            percent_max: policy.percent_max,
            window_ms: policy.window_ms,
            hold_ms: policy.hold_ms,
        }
    }
}

/// What the leader noted on a command.
impl From<&proto::Command> for Stamp {
    fn from(command: &proto::Command) -> Self {
        Stamp {
            time_ms: command.time_ms,
            policy: command.hold_policy.map(HoldPolicy::from),
        }
    }
}

/// The versions that are meant, and what is said of them.
impl TryFrom<&proto::SettleHeldRequest> for (Settlement, Vec<(RouteSpec, Revision)>) {
    type Error = ConvertError;

    fn try_from(request: &proto::SettleHeldRequest) -> Result<Self, ConvertError> {
        use proto::settle_held_request::Settlement as In;
        let settlement = match request.settlement() {
            In::Unspecified => return Err(ConvertError::Missing("settlement")),
            In::Confirm => Settlement::Confirm,
            In::Reject => Settlement::Reject,
        };
        if request.routes.len() > holdfast_table::batch::CHANGES_MAX {
            return Err(BatchError::TooManyChanges(request.routes.len()).into());
        }
        let routes = request
            .routes
            .iter()
            .map(|route| Ok((RouteSpec::parse(&route.routespec)?, Revision(route.mod_revision))));
        Ok((settlement, routes.collect::<Result<_, FieldError>>()?))
    }
}

/// How long ago a version of a route was active, by somebody's account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteActivity {
    /// The route.
    pub spec: RouteSpec,
    /// The revision that wrote the version.
    pub modified: Revision,
    /// Not a time, for clocks differ.
    pub age: Duration,
}

impl TryFrom<&proto::RouteActivity> for RouteActivity {
    type Error = FieldError;

    fn try_from(activity: &proto::RouteActivity) -> Result<Self, FieldError> {
        Ok(RouteActivity {
            spec: RouteSpec::parse(&activity.routespec)?,
            modified: Revision(activity.mod_revision),
            age: Duration::from_millis(activity.age_ms),
        })
    }
}

impl From<&RouteActivity> for proto::RouteActivity {
    fn from(activity: &RouteActivity) -> Self {
        proto::RouteActivity {
            routespec: activity.spec.as_str().to_owned(),
            mod_revision: activity.modified.0,
            age_ms: u64::try_from(activity.age.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl From<&Delta> for proto::Delta {
    fn from(delta: &Delta) -> Self {
        proto::Delta {
            from_revision: delta.from.0,
            to_revision: delta.to.0,
            puts: delta.puts.iter().map(|entry| entry.as_ref().into()).collect(),
            deletes: delta.deletes.iter().map(|spec| spec.as_str().to_owned()).collect(),
        }
    }
}

impl TryFrom<&proto::Delta> for Delta {
    type Error = FieldError;

    fn try_from(delta: &proto::Delta) -> Result<Self, FieldError> {
        Ok(Delta {
            from: Revision(delta.from_revision),
            to: Revision(delta.to_revision),
            puts: delta
                .puts
                .iter()
                .map(|put| Entry::try_from(put).map(Arc::new))
                .collect::<Result<_, _>>()?,
            deletes: delta
                .deletes
                .iter()
                .map(|spec| RouteSpec::parse(spec))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// A put takes its namespace from the batch where it names none itself.
impl TryFrom<&proto::WriteRequest> for Command {
    type Error = ConvertError;

    fn try_from(request: &proto::WriteRequest) -> Result<Self, ConvertError> {
        // Counted before anything is parsed, so that an oversized batch costs nothing.
        if request.changes.len() > holdfast_table::batch::CHANGES_MAX {
            return Err(BatchError::TooManyChanges(request.changes.len()).into());
        }
        command_in(request, |route| Route::try_from(route), Batch::new)
    }
}

/// A command from the log, which was checked when it was written.
///
/// # Errors
/// [`ConvertError`]: this never was a command.
pub fn known_command(request: &proto::WriteRequest) -> Result<Command, ConvertError> {
    command_in(request, known_route, |namespace, changes, preconditions| {
        Ok(Batch::known(namespace, changes, preconditions))
    })
}

fn command_in(
    request: &proto::WriteRequest,
    route_in: impl Fn(&proto::Route) -> Result<Route, FieldError>,
    batch_in: impl Fn(Namespace, Vec<Change>, Vec<Precondition>) -> Result<Batch, BatchError>,
) -> Result<Command, ConvertError> {
    let namespace = Namespace::parse(&request.namespace)?;
    let mut changes = Vec::with_capacity(request.changes.len());
    for change in &request.changes {
        changes.push(
            match change.change.as_ref().ok_or(ConvertError::Missing("changes.change"))? {
                proto::change::Change::Put(put) => {
                    let mut route = route_in(put)?;
                    // Named or not, all routes of a batch share it.
                    if put.namespace.is_empty() || route.namespace == namespace {
                        route.namespace = namespace.clone();
                    }
                    Change::Put(route)
                }
                proto::change::Change::Delete(spec) => Change::Delete(RouteSpec::parse(spec)?),
            },
        );
    }
    let preconditions = request.preconditions.iter().map(precondition_in);
    let session = match request.session.len() {
        0 => None,
        _ => Some((id_in("session", &request.session)?, request.sequence)),
    };
    if session.is_some_and(|(_, sequence)| sequence == 0) {
        return Err(FieldError::new("sequence", "0", "must be 1 or more in a session").into());
    }
    let batch = batch_in(namespace, changes, preconditions.collect::<Result<_, _>>()?)?;
    let batch = match request.hub_epoch {
        0 => batch,
        epoch => batch.by_hub(HubEpoch(epoch)),
    };
    let many = |deletes: u32| usize::try_from(deletes).unwrap_or(usize::MAX);
    let batch = batch.expecting(many(request.deletes_expected));
    let batch = batch.followed_by(many(request.deletes_to_come));
    let batch = match request.retry {
        true => batch.retried(),
        false => batch,
    };
    Ok(Command { batch, session })
}

/// The namespace to be opened, and by whom.
impl TryFrom<&proto::OpenHubRequest> for (Namespace, HubId) {
    type Error = ConvertError;

    fn try_from(request: &proto::OpenHubRequest) -> Result<Self, ConvertError> {
        Ok((Namespace::parse(&request.namespace)?, id_in("hub", &request.hub)?))
    }
}

fn id_in(field: &'static str, bytes: &[u8]) -> Result<[u8; 16], FieldError> {
    bytes
        .try_into()
        .map_err(|_| FieldError::new(field, &format!("{} bytes", bytes.len()), "must be 16 random bytes"))
}

fn precondition_in(precondition: &proto::Precondition) -> Result<Precondition, ConvertError> {
    use proto::precondition::Precondition as In;
    match precondition
        .precondition
        .as_ref()
        .ok_or(ConvertError::Missing("preconditions.precondition"))?
    {
        In::TableRevision(revision) => Ok(Precondition::TableRevision(Revision(*revision))),
        In::RouteRevision(route) => Ok(Precondition::RouteRevision(
            RouteSpec::parse(&route.routespec)?,
            Revision(route.mod_revision),
        )),
    }
}

impl From<&Command> for proto::WriteRequest {
    fn from(command: &Command) -> Self {
        let batch = &command.batch;
        let (session, sequence) = match command.session {
            Some((id, sequence)) => (id.to_vec().into(), sequence),
            None => Default::default(),
        };
        proto::WriteRequest {
            changes: batch.changes().iter().map(change_out).collect(),
            preconditions: batch.preconditions().iter().map(precondition_out).collect(),
            namespace: batch.namespace().as_str().to_owned(),
            session,
            sequence,
            wait_for_proxies_ms: 0,
            hub_epoch: batch.hub().map_or(0, |epoch| epoch.0),
            retry: batch.is_retry(),
            deletes_expected: u32::try_from(batch.deletes_expected()).unwrap_or(u32::MAX),
            deletes_to_come: u32::try_from(batch.deletes_to_come()).unwrap_or(u32::MAX),
        }
    }
}

fn change_out(change: &Change) -> proto::Change {
    let change = match change {
        Change::Put(route) => proto::change::Change::Put(route.into()),
        Change::Delete(spec) => proto::change::Change::Delete(spec.as_str().to_owned()),
    };
    proto::Change { change: Some(change) }
}

fn precondition_out(precondition: &Precondition) -> proto::Precondition {
    use proto::precondition::Precondition as Out;
    let precondition = match precondition {
        Precondition::TableRevision(revision) => Out::TableRevision(revision.0),
        Precondition::RouteRevision(spec, revision) => Out::RouteRevision(proto::RouteRevision {
            routespec: spec.as_str().to_owned(),
            mod_revision: revision.0,
        }),
    };
    proto::Precondition {
        precondition: Some(precondition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(spec: &str, namespace: &str) -> proto::Change {
        let route = proto::Route {
            routespec: spec.into(),
            target: "http://10.0.0.1:8888".into(),
            namespace: namespace.into(),
            ..Default::default()
        };
        proto::Change {
            change: Some(proto::change::Change::Put(route)),
        }
    }

    #[test]
    fn a_command_survives_the_wire() {
        let spec = RouteSpec::parse("/b/").unwrap();
        let changes = vec![
            Change::Put(Route::parse("/user/zo%C3%AB/", "http://[::1]:1/", r#"{"a": 1}"#, "hub-2").unwrap()),
            Change::Delete(spec.clone()),
        ];
        let preconditions = vec![
            Precondition::TableRevision(Revision(7)),
            Precondition::RouteRevision(spec, Revision(3)),
        ];
        let batch = Batch::new(Namespace::parse("hub-2").unwrap(), changes, preconditions).unwrap();
        let batch = batch.by_hub(HubEpoch(5)).expecting(3).followed_by(2).retried();
        let command = Command {
            batch,
            session: Some(([9; 16], 4)),
        };
        assert_eq!(
            Command::try_from(&proto::WriteRequest::from(&command)).unwrap(),
            command
        );
    }

    #[test]
    fn a_stamp_and_a_settlement_survive_the_wire() {
        let command = proto::Command {
            command: None,
            time_ms: 7,
            hold_policy: Some(HoldPolicy::DEFAULT.into()),
        };
        let stamp = Stamp {
            time_ms: 7,
            policy: Some(HoldPolicy::DEFAULT),
        };
        assert_eq!(Stamp::from(&command), stamp);
        let mut request = proto::SettleHeldRequest {
            settlement: proto::settle_held_request::Settlement::Reject.into(),
            routes: vec![proto::RouteRevision {
                routespec: "/a/".into(),
                mod_revision: 3,
            }],
        };
        let read = |request: &proto::SettleHeldRequest| <(Settlement, Vec<(RouteSpec, Revision)>)>::try_from(request);
        let routes = vec![(RouteSpec::parse("/a/").unwrap(), Revision(3))];
        assert_eq!(read(&request).unwrap(), (Settlement::Reject, routes));
        request.settlement = 0;
        assert!(read(&request).unwrap_err().to_string().contains("settlement"));
        request.settlement = 1;
        request.routes[0].routespec = "/a".into();
        assert!(read(&request).unwrap_err().to_string().contains("routespec \"/a\""));
    }

    #[test]
    fn a_bad_request_names_field_and_value() {
        let refused = |request: proto::WriteRequest| Command::try_from(&request).unwrap_err().to_string();
        let base = proto::WriteRequest {
            changes: vec![put("/a/", "")],
            ..Default::default()
        };
        assert!(
            refused(proto::WriteRequest {
                changes: vec![put("/a", "")],
                ..base.clone()
            })
            .contains("routespec \"/a\"")
        );
        assert!(
            refused(proto::WriteRequest {
                namespace: "a b".into(),
                ..base.clone()
            })
            .contains("namespace \"a b\"")
        );
        assert!(
            refused(proto::WriteRequest {
                changes: vec![put("/a/", "x")],
                ..base.clone()
            })
            .contains("\"x\"")
        );
        assert!(
            refused(proto::WriteRequest {
                session: vec![1].into(),
                ..base.clone()
            })
            .contains("session")
        );
        assert!(
            refused(proto::WriteRequest {
                session: vec![1; 16].into(),
                ..base.clone()
            })
            .contains("sequence")
        );
        assert!(
            refused(proto::WriteRequest {
                changes: vec![Default::default()],
                ..base.clone()
            })
            .contains("missing")
        );
        let many = vec![Default::default(); holdfast_table::batch::CHANGES_MAX + 1];
        assert!(refused(proto::WriteRequest { changes: many, ..base }).contains("100001"));
    }
}
