//! Whether all is well, from what the replicas say. Pure.

use holdfast_wire::proto::StatusResponse;

use super::{Report, digest};
use crate::output;

/// A leader that has had no quorum behind it for this long has lost it: many times the election timeout.
const CONTACT_AGE_MAX_MS: u64 = 2_000;

/// How the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Healthy,
    Degraded,
    NoQuorum,
}

/// The verdict and what it rests on.
#[derive(Debug)]
pub(super) struct Judgement {
    pub verdict: Verdict,
    /// Empty if healthy.
    pub reasons: Vec<String>,
    /// Whoever has not reached this epoch and revision is behind.
    pub goal: (u64, u64),
    /// A replica or proxy has yet to reach the goal; asking again may give another verdict.
    pub someone_is_behind: bool,
}

/// Whether two tables are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) enum Agreement {
    Same,
    Different,
    /// No replica is at the proxy's revision now, or it has acknowledged nothing yet.
    Unknown,
}

/// A proxy as the replica that it follows sees it.
#[derive(Debug)]
pub(in crate::commands) struct SeenProxy<'a> {
    pub name: &'a str,
    pub address: &'a str,
    pub replica: &'a str,
    pub revision: u64,
    pub lag: u64,
    pub digest: String,
    pub agreement: Agreement,
    pub connected_ms: u64,
}

impl Verdict {
    pub(super) fn exit_code(self) -> u8 {
        match self {
            Verdict::Healthy => 0,
            Verdict::Degraded => 1,
            Verdict::NoQuorum => 2,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Verdict::Healthy => "healthy",
            Verdict::Degraded => "degraded",
            Verdict::NoQuorum => "no-quorum",
        }
    }
}

impl Agreement {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Agreement::Same => "yes",
            Agreement::Different => "NO",
            Agreement::Unknown => "unknown",
        }
    }
}

/// The highest epoch and revision that anybody has.
pub(super) fn newest(reports: &[Report]) -> (u64, u64) {
    let positions = answers(reports).map(|(_, status)| (status.epoch, status.revision));
    positions.max().unwrap_or_default()
}

/// Every proxy that is connected to a replica which answered.
pub(in crate::commands) fn proxies(reports: &[Report], goal: (u64, u64)) -> impl Iterator<Item = SeenProxy<'_>> {
    let seen = answers(reports).flat_map(|(_, status)| status.subscribers.iter().map(move |proxy| (status, proxy)));
    seen.filter(|(_, proxy)| proxy.proxy).map(move |(status, proxy)| {
        let mut peers = answers(reports).map(|(_, other)| other);
        let peer = peers.find(|other| (other.epoch, other.revision) == (status.epoch, proxy.acknowledged_revision));
        let agreement = match peer {
            Some(peer) if !proxy.digest.is_empty() && peer.digest == proxy.digest => Agreement::Same,
            Some(_) if !proxy.digest.is_empty() => Agreement::Different,
            _ => Agreement::Unknown,
        };
        SeenProxy {
            name: &proxy.name,
            address: &proxy.address,
            replica: &status.name,
            revision: proxy.acknowledged_revision,
            lag: goal.1.saturating_sub(proxy.acknowledged_revision),
            digest: digest(&proxy.digest),
            agreement,
            connected_ms: proxy.connected_ms,
        }
    })
}

/// Judges; `goal` is what everybody must have reached.
pub(super) fn judge(reports: &[Report], goal: (u64, u64)) -> Judgement {
    let mut reasons = Vec::new();
    let mut someone_is_behind = false;
    for report in reports {
        if let Err(problem) = &report.answer {
            reasons.push(format!("{} does not answer: {problem}", report.endpoint));
        }
    }
    let led =
        answers(reports).any(|(_, status)| status.leader_id != 0 && status.leader_contact_age_ms <= CONTACT_AGE_MAX_MS);

    let best = answers(reports).max_by_key(|(_, status)| (status.committed_index, status.applied_index));
    for (endpoint, status) in answers(reports) {
        let name = &status.name;
        if !status.problem.is_empty() {
            // What it has is nobody's business any more.
            reasons.push(format!("{name} is {}", status.problem));
            continue;
        }
        if !status.waiting_for.is_empty() {
            reasons.push(format!("{name} waits for {}", status.waiting_for));
        } else if !status.ready {
            reasons.push(format!("{name} is not ready: it has not caught up since its start"));
        }
        if let Some((other, best)) = best
            && best.cluster_id != status.cluster_id
            && !status.cluster_id.is_empty()
        {
            reasons.push(format!(
                "{endpoint} and {other} belong to different clusters: check --endpoints"
            ));
            continue;
        }
        if (status.epoch, status.revision) < goal {
            someone_is_behind = true;
            reasons.push(format!("{name} is behind: revision {} of {}", status.revision, goal.1));
        }
        let different = answers(reports).find(|(_, other)| {
            (other.epoch, other.revision) == (status.epoch, status.revision)
                && other.cluster_id == status.cluster_id
                && other.digest != status.digest
                && other.name < status.name
        });
        if let Some((_, other)) = different {
            reasons.push(format!(
                "{name} and {} differ at revision {}",
                other.name, status.revision
            ));
        }
    }
    for member in best.iter().flat_map(|(_, status)| &status.members) {
        let answered = answers(reports).any(|(_, status)| status.node_id == member.node_id);
        let asked = reports.iter().any(|report| report.endpoint == member.client_address);
        if !answered && !asked {
            reasons.push(format!(
                "{} does not answer, and has told no client address",
                member.name
            ));
        }
    }
    for proxy in proxies(reports, goal) {
        if proxy.agreement == Agreement::Different {
            reasons.push(format!(
                "proxy {} has another table at revision {}",
                proxy.name, proxy.revision
            ));
        } else if proxy.lag > 0 {
            someone_is_behind = true;
            reasons.push(format!(
                "proxy {} lags: revision {} of {}",
                proxy.name, proxy.revision, goal.1
            ));
        }
    }

    if let Some((_, status)) = best
        && status.held > 0
    {
        let routes = output::counted(
            usize::try_from(status.held).unwrap_or(usize::MAX),
            "route is",
            "routes are",
        );
        reasons.push(format!(
            "{routes} held: so many were deleted at once that it may be an accident; look with `holdfast held`"
        ));
    }

    let verdict = match (led, reasons.is_empty()) {
        (true, true) => Verdict::Healthy,
        (true, false) => Verdict::Degraded,
        (false, _) => Verdict::NoQuorum,
    };
    if !led && best.is_some() {
        reasons.insert(
            0,
            "no replica knows a leader with a quorum; nothing can be written".to_owned(),
        );
    }
    Judgement {
        verdict,
        reasons,
        goal,
        someone_is_behind,
    }
}

fn answers(reports: &[Report]) -> impl Iterator<Item = (&str, &StatusResponse)> {
    reports
        .iter()
        .filter_map(|report| Some((report.endpoint.as_str(), report.answer.as_ref().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_wire::proto::{Member, SubscriberStatus};

    fn cluster() -> Vec<Report> {
        let members = (1..=3).map(|id| Member {
            node_id: id,
            name: format!("r{}", id - 1),
            client_address: format!("h{id}:1"),
            voter: true,
            ..Default::default()
        });
        let members: Vec<_> = members.collect();
        let report = |id: u64| Report {
            endpoint: format!("h{id}:1"),
            answer: Ok(StatusResponse {
                cluster_id: "c".into(),
                name: format!("r{}", id - 1),
                node_id: id,
                leader_id: 1,
                revision: 7,
                digest: vec![1; 32].into(),
                ready: true,
                leader_contact_age_ms: 20,
                members: members.clone(),
                ..Default::default()
            }),
        };
        let mut reports: Vec<_> = (1..=3).map(report).collect();
        let proxy = SubscriberStatus {
            name: "p0".into(),
            proxy: true,
            acknowledged_revision: 7,
            digest: vec![1; 32].into(),
            ..Default::default()
        };
        status(&mut reports, 1).subscribers.push(proxy);
        reports
    }

    fn status(reports: &mut [Report], at: usize) -> &mut StatusResponse {
        reports[at].answer.as_mut().unwrap()
    }

    fn judged(reports: &[Report]) -> (Verdict, String) {
        let judgement = judge(reports, newest(reports));
        (judgement.verdict, judgement.reasons.join("; "))
    }

    #[test]
    fn all_present_and_equal_is_healthy() {
        assert_eq!(judged(&cluster()), (Verdict::Healthy, String::new()));
    }

    #[test]
    fn a_missing_replica_is_degraded_and_no_leader_is_no_quorum() {
        let mut reports = cluster();
        reports[0].answer = Err("no answer".into());
        assert_eq!(
            judged(&reports),
            (Verdict::Degraded, "h1:1 does not answer: no answer".into())
        );
        for at in [1, 2] {
            status(&mut reports, at).leader_contact_age_ms = 60_000;
        }
        assert_eq!(judged(&reports).0, Verdict::NoQuorum);
        assert_eq!(judged(&[]).0, Verdict::NoQuorum);
    }

    #[test]
    fn a_different_table_is_degraded_wherever_it_is() {
        let mut reports = cluster();
        status(&mut reports, 2).digest = vec![2; 32].into();
        assert_eq!(
            judged(&reports),
            (Verdict::Degraded, "r2 and r0 differ at revision 7".into())
        );
        let mut reports = cluster();
        status(&mut reports, 1).subscribers[0].digest = vec![2; 32].into();
        assert_eq!(
            judged(&reports),
            (Verdict::Degraded, "proxy p0 has another table at revision 7".into())
        );
    }

    #[test]
    fn what_is_held_waits_for_an_operator() {
        let mut reports = cluster();
        (0..3).for_each(|at| status(&mut reports, at).held = 7);
        let (verdict, reasons) = judged(&reports);
        assert_eq!(verdict, Verdict::Degraded);
        assert!(
            reasons.starts_with("7 routes are held:") && reasons.contains("`holdfast held`"),
            "{reasons}"
        );
    }

    #[test]
    fn who_is_behind_may_catch_up() {
        let mut reports = cluster();
        status(&mut reports, 0).revision = 8;
        let judgement = judge(&reports, newest(&reports));
        assert!(judgement.someone_is_behind);
        assert_eq!(judgement.reasons.len(), 3, "{:?}", judgement.reasons);
        // Reached what was newest when the looking began: not behind, however far the leader has gone meanwhile.
        assert!(!judge(&reports, (0, 7)).someone_is_behind);
    }
}
