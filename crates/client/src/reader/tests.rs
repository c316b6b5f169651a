use super::*;
use crate::testing::{ListCall, ScriptedReplica, entry, soon, table};
use holdfast_wire::proto;
use holdfast_wire::proto::GetResponse;
use tonic::Response;

fn reader(replica: &ScriptedReplica, timeout: Duration) -> RouteReader {
    RouteReader::new(Endpoints::parse(&[&replica.address]).unwrap(), timeout)
}

fn page(total: u64, specs: &[&str]) -> ListResponse {
    ListResponse {
        revision: 4,
        epoch: 1,
        routes: specs.iter().map(|spec| (&entry(spec, 1)).into()).collect(),
        total,
        digest: table(1, 4).digest().to_bytes().to_vec().into(),
        json: String::new(),
    }
}

async fn send(call: &ListCall, page: ListResponse) {
    call.pages.send(Ok(page)).await.unwrap();
}

#[tokio::test]
async fn a_list_that_breaks_is_read_again_from_its_start() {
    let mut a = ScriptedReplica::start().await;
    let reader = reader(&a, Duration::from_secs(15));
    let script = async {
        // Cut short in silence, then with an error, then by a page of another revision.
        let call = soon(a.lists.recv()).await.unwrap();
        assert_eq!(
            (call.request.namespace.as_str(), call.request.prefix.as_str()),
            ("*", "/u")
        );
        send(&call, page(3, &["/u/a/", "/u/b/"])).await;
        drop(call);
        let call = soon(a.lists.recv()).await.unwrap();
        send(&call, page(3, &["/u/a/", "/u/b/"])).await;
        call.pages.send(Err(Status::internal("died"))).await.unwrap();
        let call = soon(a.lists.recv()).await.unwrap();
        send(&call, page(2, &["/u/a/"])).await;
        send(
            &call,
            ListResponse {
                revision: 5,
                ..page(2, &["/u/b/"])
            },
        )
        .await;
        drop(call);
        // Without even a first page.
        drop(soon(a.lists.recv()).await.unwrap());
        let call = soon(a.lists.recv()).await.unwrap();
        send(&call, page(3, &["/u/a/", "/u/b/"])).await;
        send(&call, page(3, &["/u/c/"])).await;
    };
    let (listing, ()) = soon(async { tokio::join!(reader.list(None, "/u"), script) }).await;
    let listing = listing.unwrap();
    let specs: Vec<_> = listing.routes.iter().map(|entry| entry.route.spec.as_str()).collect();
    assert_eq!(specs, ["/u/a/", "/u/b/", "/u/c/"]);
    assert_eq!((listing.revision, listing.digest), (Revision(4), table(1, 4).digest()));
}

#[tokio::test]
async fn a_list_that_never_comes_whole_is_an_error() {
    let mut a = ScriptedReplica::start().await;
    let reader = reader(&a, Duration::from_millis(600));
    let script = async {
        loop {
            let call = soon(a.lists.recv()).await.unwrap();
            send(&call, page(2, &["/u/a/"])).await;
        }
    };
    let namespace = Namespace::default();
    let error = tokio::select! {
        listing = soon(reader.list(Some(&namespace), "")) => listing.unwrap_err(),
        () = script => unreachable!(),
    };
    assert!(
        matches!(&error, ReadError::Unavailable { tried } if tried.contains("1 of 2")),
        "{error}"
    );
}

#[tokio::test]
async fn an_empty_table_is_an_answer() {
    let mut a = ScriptedReplica::start().await;
    let reader = reader(&a, Duration::from_secs(15));
    let script = async {
        let call = soon(a.lists.recv()).await.unwrap();
        send(&call, page(0, &[])).await;
    };
    let (listing, ()) = soon(async { tokio::join!(reader.list(None, ""), script) }).await;
    assert!(listing.unwrap().routes.is_empty());
}

#[tokio::test]
async fn an_absent_route_is_an_answer_and_a_failed_get_is_not() {
    let mut a = ScriptedReplica::start().await;
    let reader = reader(&a, Duration::from_secs(15));
    let spec = RouteSpec::parse("/a/").unwrap();
    let script = async {
        for route in [None, Some(proto::Route::from(&entry("/a/", 3)))] {
            let call = soon(a.gets.recv()).await.unwrap();
            assert_eq!(call.request.routespec, "/a/");
            call.answer.send(Err(Reason::NotReady.status("catching up"))).unwrap();
            let call = soon(a.gets.recv()).await.unwrap();
            let response = GetResponse {
                route,
                ..Default::default()
            };
            call.answer.send(Ok(Response::new(response))).unwrap();
        }
    };
    let gets = async { (reader.get(&spec).await.unwrap(), reader.get(&spec).await.unwrap()) };
    let ((absent, present), ()) = soon(async { tokio::join!(gets, script) }).await;
    assert_eq!((absent, present), (None, Some(entry("/a/", 3))));
}

#[tokio::test]
async fn a_replica_that_is_gone_is_named_in_its_status_error() {
    let gone = ScriptedReplica::start().await.address;
    let reader = RouteReader::new(Endpoints::parse(&[&gone]).unwrap(), Duration::from_secs(2));
    let statuses = soon(reader.statuses()).await;
    assert_eq!(statuses.len(), 1);
    assert_eq!(statuses[0].0, gone);
    let error = statuses[0].1.as_ref().unwrap_err().to_string();
    assert!(error.contains(&gone), "{error}");
    assert!(matches!(
        soon(reader.status("nowhere")).await,
        Err(ReadError::Endpoint(_))
    ));
}
