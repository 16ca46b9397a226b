//! Lists in pages.

use std::collections::BTreeMap;

use sandkeeper::SandboxKey;
use sandkeeper::spec::SandboxSpec;
use sandkeeper::wire::generated as wire;
use tonic::Code;

use crate::house::{House, on_one_core_and_on_two};

#[test]
fn a_list_of_many_comes_whole_and_in_order() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        for number in 0..2_500 {
            let namespace = if number % 5 == 0 { "even-more" } else { "default" };
            let key = SandboxKey::new(namespace, &format!("s-{number}")).unwrap();
            let color = if number % 2 == 0 { "green" } else { "blue" };
            let labels = BTreeMap::from([("color".to_owned(), color.to_owned())]);
            let spec = SandboxSpec { labels, ..SandboxSpec::default() };
            if number % 10 == 0 {
                house.keeper.run(&key, spec).await.unwrap();
            } else {
                house.keeper.define(&key, spec).await.unwrap();
            }
        }
        let mut client = house.client().await;
        let names = |list: &[wire::SandboxStatus]| -> Vec<_> {
            list.iter().map(|status| (status.namespace.clone(), status.id.clone())).collect()
        };
        let all = client.list(wire::ListRequest::default()).await.unwrap();
        let mut sorted = names(&all);
        sorted.sort();
        sorted.dedup();
        assert_eq!((sorted.len(), names(&all)), (2_500, sorted));

        let mut raw = client.raw();
        let (mut gathered, mut sizes, mut token) = (Vec::new(), Vec::new(), String::new());
        loop {
            let request = wire::ListRequest { page_token: token, ..Default::default() };
            let page = raw.list(request).await.unwrap().into_inner();
            sizes.push(page.sandboxes.len());
            gathered.extend(page.sandboxes);
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(sizes, [1_000, 1_000, 500]);
        assert_eq!(gathered, all);

        let mut selected = async |request| client.list(request).await.unwrap().len();
        let phases = vec!["running".to_owned(), "paused".to_owned()];
        assert_eq!(selected(wire::ListRequest { phases, ..Default::default() }).await, 250);
        let labels = BTreeMap::from([("color".to_owned(), "blue".to_owned())]);
        assert_eq!(selected(wire::ListRequest { labels, ..Default::default() }).await, 1_250);
        let namespace = "even-more".to_owned();
        assert_eq!(selected(wire::ListRequest { namespace, ..Default::default() }).await, 500);

        for malformed in [
            wire::ListRequest { phases: vec!["gone".to_owned()], ..Default::default() },
            wire::ListRequest { phases: vec!["Running".to_owned()], ..Default::default() },
            wire::ListRequest { page_token: "..".to_owned(), ..Default::default() },
        ] {
            assert_eq!(raw.list(malformed).await.unwrap_err().code(), Code::InvalidArgument);
        }
        house.close().await;
    });
}

/// Goal: pages keep within the size of a message, whatever is in them, and so do snapshots.
#[test]
fn large_sandboxes_make_smaller_pages() {
    on_one_core_and_on_two(async || {
        let house = House::open().await;
        for number in 0..150 {
            let key = SandboxKey::new("default", &format!("s-{number}")).unwrap();
            let labels = BTreeMap::from([("note".to_owned(), "x".repeat(60_000))]);
            house.keeper.define(&key, SandboxSpec { labels, ..SandboxSpec::default() }).await.unwrap();
        }
        let mut client = house.client().await;
        let page = client.raw().list(wire::ListRequest::default()).await.unwrap().into_inner();
        assert!((2..150).contains(&page.sandboxes.len()), "{} sandboxes on a page", page.sandboxes.len());
        assert_eq!(client.list(wire::ListRequest::default()).await.unwrap().len(), 150);
        let mut watch = client.watch(0, 0).await.unwrap();
        let mut parts = Vec::new();
        loop {
            let item = watch.next().await.unwrap().expect("it goes on").item;
            let Some(wire::watch_response::Item::Snapshot(snapshot)) = item else { panic!("{item:?}") };
            parts.push(snapshot.sandboxes.len());
            if snapshot.last {
                break;
            }
        }
        assert!(parts.len() > 5 && parts.iter().sum::<usize>() == 150, "{parts:?}");
        house.close().await;
    });
}
