//! From the start of the process to the first right answer. configurable-http-proxy has none: it starts without routes.

use anyhow::Result;
use holdfast_benches::proxies::holdfast::{Table, cached};
use holdfast_benches::proxies::{Kind, Routes};
use holdfast_benches::targets::Targets;

use crate::{Bench, SHARED};

pub async fn measure(bench: &mut Bench) -> Result<()> {
    let mut kinds = bench.kinds();
    kinds.retain(|kind| !matches!(kind, Kind::Chp | Kind::Direct));
    for (count, told) in [(10_000, "10,000"), (100_000, "100,000")] {
        let what = format!("start, {told} routes");
        let from_cache = format!("{what} (Holdfast: from its cache)");
        let from_replica = format!("{what} (Holdfast: from a replica)");
        let targets = Targets::start(SHARED)?;
        let routes = Routes::new(bench.run.times(count), targets.addresses());
        let proxies = bench.proxies(&what, &kinds, &routes, 1).await?;
        bench
            .rounds(&what, proxies, async |proxy| {
                if let Some(cluster) = proxy.cluster() {
                    cached(cluster).await?;
                }
                let first = proxy.restart(Table::FromCache).await?.as_secs_f64() * 1e3;
                let second = match proxy.kind() {
                    Kind::Holdfast => proxy.restart(Table::FromReplica).await?.as_secs_f64() * 1e3,
                    _ => first,
                };
                Ok(vec![(from_cache.clone(), first), (from_replica.clone(), second)])
            })
            .await?;
    }
    Ok(())
}
