//! One more route: from the command to the first right answer. Holdfast writes it to the disks of two of three replicas.

use anyhow::Result;
use holdfast_benches::proxies::{By, Kind, Routes};
use holdfast_benches::targets::Targets;

use crate::{Bench, SHARED};

/// How often in each round, in each way.
const TIMES: usize = 3;

pub async fn measure(bench: &mut Bench) -> Result<()> {
    let mut kinds = bench.kinds();
    kinds.retain(|kind| *kind != Kind::Direct);
    for (count, told) in [(10, "10"), (1_000, "1,000"), (10_000, "10,000"), (100_000, "100,000")] {
        let what = |by: &str| format!("one more {by}, {told} routes");
        let targets = Targets::start(SHARED)?;
        let count = if count > 10 { bench.run.times(count) } else { count };
        let routes = Routes::new(count, targets.addresses());
        let proxies = bench.proxies(&what("by any way"), &kinds, &routes, 3).await?;
        bench
            .rounds(&what("by any way"), proxies, async |proxy| {
                let mut figures = Vec::new();
                for _ in 0..TIMES {
                    for (by, row) in [(By::Command, what("by command")), (By::Call, what("by a call"))] {
                        if let Some(took) = proxy.add_route(by).await? {
                            figures.push((row, took.as_secs_f64() * 1e3));
                        }
                    }
                }
                Ok(figures)
            })
            .await?;
    }
    Ok(())
}
