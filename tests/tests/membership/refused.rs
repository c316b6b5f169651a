//! A change that would harm is refused, and changes nothing.

use anyhow::{Result, ensure};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, free_port, until};

use crate::{ask, ask_in_vain, members, roles, voters};

#[tokio::test]
async fn p5_a_change_that_would_lose_the_quorum_is_refused() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let before = roles(&cluster).await?;
    let nobody = format!("r9=127.0.0.1:{}", free_port());
    let taken = cluster.replicas[1].peer();
    for (arguments, words) in [
        (vec!["members", "add", &nobody], vec!["nobody answers", "--name r9"]),
        (
            vec!["members", "add", &taken],
            vec!["member already", "members replace"],
        ),
        (vec!["members", "promote", "r1"], vec!["a vote already"]),
        (vec!["members", "promote", "r7"], vec!["r7 is no member", "r0 (id 1)"]),
        (vec!["members", "replace", "r1"], vec!["answers"]),
        (vec!["members", "remove", "r0", "r1", "r2"], vec!["nobody with a vote"]),
        (vec!["leader", "move", "--to", "r7"], vec!["r7 is no member"]),
    ] {
        ask_in_vain(&cluster, &arguments, &words).await?;
    }
    ensure!(roles(&cluster).await? == before, "{before:?} before");

    let leader = cluster.leader().await?;
    let [down, other] = [(leader + 1) % 3, (leader + 2) % 3];
    let (down_name, other_name, leader_name) = (format!("r{down}"), format!("r{other}"), format!("r{leader}"));
    cluster.replicas[down].process.kill();
    // Until its silence is noticed it counts as there.
    until("its silence is noticed", SOON, async || {
        let list = members(&cluster).await?;
        ensure!(
            list["waits_for"].as_str().is_some_and(|why| why.contains(&down_name)),
            "{list}"
        );
        Ok(())
    })
    .await?;
    for name in [&other_name, &leader_name] {
        ask_in_vain(
            &cluster,
            &["members", "remove", name],
            &["lose the quorum", &down_name, "nothing was changed"],
        )
        .await?;
    }
    ask_in_vain(
        &cluster,
        &["members", "replace", &down_name],
        &["no empty replica", &down_name],
    )
    .await?;
    ask_in_vain(&cluster, &["leader", "move", "--to", &down_name], &["does not answer"]).await?;
    ensure!(roles(&cluster).await? == before, "{before:?} before");

    // The one that is down can go: the two that are left are a quorum of two.
    let finished = ask(&cluster, &["members", "remove", &down_name]).await?;
    ensure!(finished.code == Some(0), "{finished:?}");
    voters(&cluster, &[&leader_name, &other_name]).await?;
    cluster.replicas[other].process.kill();
    // Asked before, the leader would begin, and end it when the other one is back.
    until("its silence is noticed", SOON, async || {
        let status = cluster.replicas[leader].status().await?;
        let silent = status.members.iter().find(|member| member.name == other_name);
        let age = silent.and_then(|member| member.contact_age_ms);
        ensure!(age.is_none_or(|age| age > 1_500), "{status:?}");
        Ok(())
    })
    .await?;
    until("without a quorum nothing changes", SOON, async || {
        let remove = ["members", "remove", other_name.as_str(), "--timeout", "2s"];
        let finished = ask(&cluster, &remove).await?;
        ensure!(finished.code == Some(1), "{finished:?}");
        Ok(())
    })
    .await?;
    cluster.replicas[other].process.start()?;
    cluster.ready().await?;
    voters(&cluster, &[&leader_name, &other_name]).await?;
    cluster.finish().await
}
