use super::*;

/// `r0` leads with id 1; `--peers` names as many as there are voters. Addresses are `<name>:1`, disks `s<id>`.
fn cluster(voters: u64) -> View {
    let names = (0..voters).map(|at| format!("r{at}"));
    View {
        leader: "r0".into(),
        members: (1..=voters)
            .zip(names.clone())
            .map(|(id, name)| (id, member(id, &name, true)))
            .collect(),
        configured: names.map(|name| configured(&name)).collect(),
        ..View::default()
    }
}

fn configured(name: &str) -> PeerAddress {
    PeerAddress {
        name: name.into(),
        address: format!("{name}:1"),
    }
}

fn node(name: &str, store_uuid: &str) -> Node {
    Node {
        name: name.into(),
        peer_address: format!("{name}:1"),
        client_address: format!("{name}:2"),
        store_uuid: store_uuid.into(),
    }
}

fn member(id: u64, name: &str, voter: bool) -> Member {
    Member {
        node: node(name, &format!("s{id}")),
        voter,
        alive: true,
        caught_up: true,
    }
}

fn down(view: &mut View, id: u64) {
    view.members.get_mut(&id).unwrap().alive = false;
}

fn blank(view: &mut View, name: &str, store_uuid: &str) {
    let blank = Blank {
        name: name.into(),
        store_uuid: store_uuid.into(),
        client_address: format!("{name}:2"),
        peers: vec!["r0".into(), "r1".into(), "r2".into()],
    };
    view.answers.insert(format!("{name}:1"), Answer::Blank(blank));
}

fn waits(view: &View, word: &str) {
    match decide(view) {
        Action::Wait(why) => assert!(why.contains(word), "{word:?} is not in {why:?}"),
        action => panic!("{action:?}"),
    }
}

fn voters(ids: &[u64]) -> Action {
    Action::Voters(ids.iter().copied().collect())
}

#[test]
fn a_member_that_runs_and_takes_no_part_is_told_from_a_stranger() {
    let mut view = cluster(3);
    view.cluster_id = "c".into();
    down(&mut view, 3);
    for (store_uuid, word) in [("s3", "overloaded"), ("s9", "no member here")] {
        let taken = Answer::Taken {
            name: "r2".into(),
            cluster_id: "c".into(),
            store_uuid: store_uuid.into(),
            client_address: "r2:2".into(),
        };
        view.answers.insert("r2:1".into(), taken);
        waits(&view, word);
    }
}

#[test]
fn a_whole_cluster_is_left_alone() {
    for count in [1, 2, 3, 5] {
        assert_eq!(decide(&cluster(count)), Action::Wait(String::new()));
    }
}

#[test]
fn a_change_that_was_left_half_done_comes_first() {
    let mut view = cluster(3);
    view.joint = true;
    down(&mut view, 2);
    blank(&mut view, "r1", "new");
    assert_eq!(decide(&view), Action::Finish);
}

#[test]
fn a_replica_that_lost_its_disk_is_added_then_adopted_then_takes_the_vote() {
    let mut view = cluster(3);
    down(&mut view, 2);
    view.answers.insert("r1:1".into(), Answer::Silent);
    waits(&view, "r1 (id 2)");
    blank(&mut view, "r1", "s4");
    assert_eq!(decide(&view), Action::Add(node("r1", "s4")));

    view.members.insert(4, member(4, "r1", false));
    down(&mut view, 4);
    let adopt = Action::Adopt {
        node_id: 4,
        node: node("r1", "s4"),
    };
    assert_eq!(decide(&view), adopt);

    view.answers.clear();
    view.members.get_mut(&4).unwrap().caught_up = false;
    waits(&view, "catch up");
    view.members.get_mut(&4).unwrap().alive = true;
    waits(&view, "catch up");
    view.members.get_mut(&4).unwrap().caught_up = true;
    assert_eq!(decide(&view), voters(&[1, 3, 4]));
}

#[test]
fn p5_only_an_empty_replica_of_the_missing_ones_name_replaces_it() {
    let mut view = cluster(3);
    down(&mut view, 2);
    let taken = Answer::Taken {
        name: "r1".into(),
        cluster_id: "another".into(),
        store_uuid: "s9".into(),
        client_address: "r1:2".into(),
    };
    view.answers.insert("r1:1".into(), taken);
    waits(&view, "cluster another");
    blank(&mut view, "r1", "s4");
    let Some(Answer::Blank(found)) = view.answers.get_mut("r1:1") else {
        unreachable!()
    };
    found.peers = vec!["r1".into(), "x".into()];
    waits(&view, "--peers");
    let Some(Answer::Blank(found)) = view.answers.get_mut("r1:1") else {
        unreachable!()
    };
    found.name = "r7".into();
    waits(&view, "\"r7\"");
}

#[test]
fn p5_two_missing_are_not_replaced_however_empty_they_are() {
    for count in [3, 5] {
        let mut view = cluster(count);
        for (id, name) in [(2, "r1"), (3, "r2")] {
            down(&mut view, id);
            blank(&mut view, name, "new");
        }
        waits(&view, "r1 and r2 do not answer");
    }
}

#[test]
fn an_empty_replica_takes_nobodys_place_who_answers() {
    let mut view = cluster(3);
    blank(&mut view, "r1", "new");
    assert_eq!(decide(&view), Action::Wait(String::new()));
}

#[test]
fn a_replica_that_moved_is_replaced_where_the_configuration_says() {
    let mut view = cluster(3);
    down(&mut view, 2);
    view.configured[1].address = "elsewhere:1".into();
    blank(&mut view, "r1", "s4");
    let found = view.answers.remove("r1:1").unwrap();
    view.answers.insert("elsewhere:1".into(), found);
    let moved = Node {
        peer_address: "elsewhere:1".into(),
        ..node("r1", "s4")
    };
    assert_eq!(decide(&view), Action::Add(moved));
}

#[test]
fn a_learner_that_lost_its_disk_or_its_purpose_is_dropped() {
    let mut wiped = cluster(3);
    down(&mut wiped, 2);
    wiped.members.insert(4, member(4, "r1", false));
    down(&mut wiped, 4);
    blank(&mut wiped, "r1", "s5");
    assert_eq!(decide(&wiped), Action::Drop(4));

    let mut back = cluster(3);
    back.members.insert(4, member(4, "r1", false));
    down(&mut back, 4);
    assert_eq!(decide(&back), Action::Drop(4));

    // Added by hand and merely away: it stays.
    let mut spare = cluster(3);
    spare.members.insert(4, member(4, "r9", false));
    down(&mut spare, 4);
    assert_eq!(decide(&spare), Action::Wait(String::new()));
}

#[test]
fn configured_peers_join_as_they_come_and_vote_all_at_once() {
    let mut view = cluster(3);
    view.configured.extend([configured("r3"), configured("r4")]);
    waits(&view, "r3");
    blank(&mut view, "r4", "s4");
    assert_eq!(decide(&view), Action::Add(node("r4", "s4")));
    view.members.insert(4, member(4, "r4", false));
    // Three of them and one more are not four.
    waits(&view, "r3");
    blank(&mut view, "r3", "s5");
    assert_eq!(decide(&view), Action::Add(node("r3", "s5")));
    view.members.insert(5, member(5, "r3", false));
    view.members.get_mut(&5).unwrap().caught_up = false;
    waits(&view, "r3 (id 5) to catch up");
    view.members.get_mut(&5).unwrap().caught_up = true;
    assert_eq!(decide(&view), voters(&[1, 2, 3, 4, 5]));
}

#[test]
fn a_recovered_survivor_grows_to_three_and_never_stops_at_two() {
    let mut view = cluster(1);
    view.configured.extend([configured("r1"), configured("r2")]);
    blank(&mut view, "r1", "s2");
    assert_eq!(decide(&view), Action::Add(node("r1", "s2")));
    view.members.insert(2, member(2, "r1", false));
    waits(&view, "r2");
    view.members.insert(3, member(3, "r2", false));
    assert_eq!(decide(&view), voters(&[1, 2, 3]));
}

#[test]
fn an_even_number_of_voters_is_left_to_the_operator() {
    let mut view = cluster(3);
    view.configured.push(configured("r3"));
    view.members.insert(4, member(4, "r3", false));
    waits(&view, "members promote");
}

#[test]
fn a_missing_voter_is_replaced_before_others_are_added() {
    let mut view = cluster(3);
    view.configured.extend([configured("r3"), configured("r4")]);
    blank(&mut view, "r3", "s4");
    down(&mut view, 2);
    waits(&view, "r1 (id 2)");
}

#[test]
fn a_change_that_loses_the_quorum_is_refused_and_names_who_is_missing() {
    let mut view = cluster(3);
    let all = view.voter_ids();
    assert_eq!(keeps_quorum(&view, &all), Ok(()));
    down(&mut view, 3);
    assert_eq!(keeps_quorum(&view, &all), Ok(()));
    // Without r1, r0 and the silent r2 would be two of whom both must answer.
    let refused = keeps_quorum(&view, &[1, 3].into()).unwrap_err();
    assert!(
        refused.contains("r2 does not") && refused.contains("2 must answer and only 1"),
        "{refused}"
    );
    assert_eq!(keeps_quorum(&view, &[1, 2].into()), Ok(()));
}

#[test]
fn a_member_is_followed_to_another_address_with_its_disk_and_in_its_cluster_alone() {
    let mut view = cluster(3);
    view.cluster_id = "this".into();
    view.configured[1].address = "moved:1".into();
    let taken = |cluster_id: &str, store_uuid: &str| Answer::Taken {
        name: "r1".into(),
        cluster_id: cluster_id.into(),
        store_uuid: store_uuid.into(),
        client_address: "moved:2".into(),
    };
    view.answers.insert("moved:1".into(), taken("this", "s2"));
    assert_eq!(decide(&view), Action::Wait(String::new()), "it is heard where it is");
    down(&mut view, 2);
    let moved = Node {
        peer_address: "moved:1".into(),
        client_address: "moved:2".into(),
        ..node("r1", "s2")
    };
    let followed = Action::Move {
        node_id: 2,
        node: moved,
    };
    assert_eq!(decide(&view), followed);
    // Another one that is silent too is no reason to wait: nobody's vote changes.
    down(&mut view, 3);
    assert_eq!(decide(&view), followed);
    view.members.get_mut(&3).unwrap().alive = true;

    for stranger in [taken("this", "s9"), taken("another", "s2"), Answer::Silent] {
        view.answers.insert("moved:1".into(), stranger);
        assert!(matches!(decide(&view), Action::Wait(_)), "{:?}", decide(&view));
    }
    // Silent and at its place: it is starting, or cut off.
    view.answers.insert("moved:1".into(), taken("this", "s2"));
    view.answers.insert("r1:1".into(), taken("this", "s2"));
    assert!(matches!(decide(&view), Action::Wait(_)), "{:?}", decide(&view));
}
