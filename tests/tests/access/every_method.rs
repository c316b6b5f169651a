use anyhow::{Context, Result, ensure};
use holdfast_tests::fixture::Cluster;
use holdfast_tests::fixture::cluster::SOON;
use holdfast_wire::errors::{FORWARDED, Reason};
use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::TOKEN;

/// What is read of a `google.protobuf.FileDescriptorSet`.
#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(message, repeated, tag = "1")]
    file: Vec<File>,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "6")]
    service: Vec<Service>,
}

#[derive(Clone, PartialEq, Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    method: Vec<Method>,
}

#[derive(Clone, PartialEq, Message)]
struct Method {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// Every method that clients may call, from the descriptors themselves: a new one is asked too.
fn methods() -> Result<Vec<String>> {
    let files = Files::decode(holdfast_wire::DESCRIPTORS)?;
    let mut methods = vec!["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo".to_owned()];
    for file in &files.file {
        for service in file.service.iter().filter(|service| service.name != "Raft") {
            let path = |method: &Method| format!("/{}.{}/{}", file.package, service.name, method.name);
            methods.extend(service.method.iter().map(path));
        }
    }
    Ok(methods)
}

/// An empty message to any method: of one that streams, the first answer.
async fn ask(channel: &Channel, path: &str, metadata: &[(&'static str, &str)]) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let mut request = Request::new(Nothing {});
    for (name, value) in metadata {
        if name.ends_with("-bin") {
            let value = MetadataValue::from_bytes(value.as_bytes());
            request.metadata_mut().insert_bin(*name, value);
        } else {
            request.metadata_mut().insert(*name, value.parse().expect("ASCII"));
        }
    }
    let codec: ProstCodec<Nothing, Nothing> = ProstCodec::default();
    let path = PathAndQuery::try_from(path).expect("a path");
    let answer = async {
        client
            .server_streaming(request, path, codec)
            .await?
            .into_inner()
            .message()
            .await
    };
    let answer = tokio::time::timeout(SOON, answer).await;
    answer
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
        .map(drop)
}

#[tokio::test]
async fn every_method_but_health_wants_a_token() -> Result<()> {
    let mut cluster = Cluster::prepare(1)?;
    let tokens = cluster.folder().join("tokens");
    std::fs::write(&tokens, TOKEN)?;
    cluster.replicas[0].process.set_flag("--api-token-file", &tokens);
    cluster.replicas[0].process.start()?;
    cluster.ready().await?;
    let endpoint = cluster.replicas[0].endpoint();
    let channel = Endpoint::from_shared(format!("http://{endpoint}"))?.connect().await?;
    let methods = methods()?;
    ensure!(methods.len() > 12, "{methods:?}");
    for method in &methods {
        let refusal = ask(&channel, method, &[]).await.err().context(method.clone())?;
        ensure!(refusal.code() == Code::Unauthenticated, "{method}: {refusal:?}");
        // As another replica would say it: no way around.
        let refusal = ask(&channel, method, &[(FORWARDED, "")])
            .await
            .err()
            .context(method.clone())?;
        ensure!(refusal.code() == Code::Unauthenticated, "{method}: {refusal:?}");
        let bearer = format!("Bearer {TOKEN}");
        if let Err(status) = ask(&channel, method, &[("authorization", &bearer)]).await {
            ensure!(status.code() != Code::Unauthenticated, "{method}: {status:?}");
        }
    }
    ask(&channel, "/grpc.health.v1.Health/Check", &[]).await?;
    let raft = ask(&channel, "/holdfast.v1.Raft/Identify", &[("authorization", "Bearer x")]).await;
    ensure!(raft.is_err_and(|status| status.code() == Code::Unimplemented));

    // The peers' listener takes what was forwarded, and no call of a client's.
    let peers = format!("http://127.0.0.1:{}", cluster.replicas[0].peer_port);
    let peers = Endpoint::from_shared(peers)?.connect().await?;
    for method in methods.iter().filter(|method| method.starts_with("/holdfast.")) {
        let refusal = ask(&peers, method, &[]).await.err().context(method.clone())?;
        ensure!(refusal.code() == Code::PermissionDenied, "{method}: {refusal:?}");
        // Nor one that is not for this very replica.
        let refusal = ask(&peers, method, &[(FORWARDED, "")])
            .await
            .err()
            .context(method.clone())?;
        ensure!(
            Reason::from_status(&refusal) == Some(Reason::Misdirected),
            "{method}: {refusal:?}"
        );
    }
    cluster.keep_quiet();
    Ok(())
}
