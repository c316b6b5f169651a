//! Who this data directory is: written before the replica speaks, and never changed after.

use std::io;

use holdfast_wire::proto;
use prost::Message as _;
use uuid::Uuid;

use super::disk::{Batch, Family};
use super::{FORMAT, OpenError, Store, corrupt, keys, sealed, unsealed};

/// Not by its key, as rows are: the identity of a directory of any format can be read, which tells that format.
const SEALED_BY: &[u8] = &[];

/// Who this replica is, and in which cluster.
pub type Identity = proto::StoreIdentity;

impl Store {
    /// Reads the identity; a new directory gets one without a cluster.
    ///
    /// # Errors
    /// [`OpenError`]: another version's directory, another replica's, or a damaged one.
    pub fn identity(&self, name: &str) -> Result<Identity, OpenError> {
        let Some(identity) = self.written_identity()? else {
            let identity = Identity {
                format: FORMAT,
                store_uuid: Uuid::new_v4().to_string(),
                name: name.to_owned(),
                ..Identity::default()
            };
            self.save_identity(&identity)?;
            return Ok(identity);
        };
        if identity.name != name {
            return Err(OpenError::Name {
                path: self.path.clone(),
                found: identity.name,
                name: name.to_owned(),
            });
        }
        Ok(identity)
    }

    /// The identity as it is on disk; `None` in a new directory.
    ///
    /// # Errors
    /// [`OpenError`]: another version's directory, or a damaged one.
    pub fn written_identity(&self) -> Result<Option<Identity>, OpenError> {
        let failed = |error: io::Error| self.failed("identity", &error);
        let damaged = |problem: &str| failed(corrupt(problem));
        let Some(value) = self.disk.get(Family::Meta, keys::IDENTITY).map_err(failed)? else {
            // Whoever wrote the rest had one: a replica that took a new one here would forget what it has promised.
            return match self.is_blank().map_err(failed)? {
                true => Ok(None),
                false => Err(damaged("is missing, though there is more")),
            };
        };
        let message = unsealed(SEALED_BY, &value).map_err(damaged)?;
        let identity = Identity::decode(message).map_err(|error| damaged(&error.to_string()))?;
        if identity.format != FORMAT {
            return Err(OpenError::Format {
                path: self.path.clone(),
                found: identity.format,
            });
        }
        Ok(Some(identity))
    }

    /// Writes the identity; on disk when this returns.
    pub fn save_identity(&self, identity: &Identity) -> Result<(), OpenError> {
        let mut batch = Batch::default();
        batch.put(Family::Meta, keys::IDENTITY, sealed(SEALED_BY, identity));
        let written = self.disk.write(batch).and_then(|()| self.disk.sync());
        written.map_err(|error| self.failed("identity", &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_belongs_to_one_replica_one_process_and_one_version() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let identity = store.identity("r0").unwrap();
        assert!(matches!(Store::open(dir.path()), Err(OpenError::Locked { .. })));
        assert!(matches!(store.identity("r1"), Err(OpenError::Name { .. })));
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.identity("r0").unwrap(), identity);
        store.save_identity(&Identity { format: 99, ..identity }).unwrap();
        let error = store.identity("r0").unwrap_err();
        assert!(error.to_string().contains("format 99"), "{error}");
    }

    fn put(store: &Store, key: &[u8], value: &[u8]) {
        let mut batch = Batch::default();
        batch.put(Family::Meta, key, value.to_vec());
        store.disk.write(batch).unwrap();
    }

    /// Neither a start nor a recovery takes it, both name it and say what to do, and it stays as it is.
    fn is_refused(store: &Store, what: &str) {
        let read = || store.disk.get(Family::Meta, keys::IDENTITY).unwrap();
        let before = read();
        for error in [store.identity("r0").err(), store.written_identity().err()] {
            let error = error.unwrap_or_else(|| panic!("believed {what}"));
            assert!(matches!(error, OpenError::Damaged { .. }), "{what}: {error}");
            let (text, path) = (error.to_string(), format!("{:?}", store.path()));
            for part in [&path, "(identity: ", "nothing was changed", "docs/operating.md"] {
                assert!(text.contains(part), "{what}: {part} is not in {text}");
            }
        }
        assert_eq!(read(), before, "{what}");
    }

    #[test]
    fn p6_an_identity_with_any_bit_changed_or_cut_off_anywhere_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let founder = proto::Founder {
            node_id: 2,
            node: Some(proto::Node {
                name: "r1".into(),
                store_uuid: "a-store".into(),
                ..proto::Node::default()
            }),
        };
        let identity = Identity {
            cluster_id: "a-cluster".into(),
            node_id: 1,
            founders: vec![founder],
            ..store.identity("r0").unwrap()
        };
        store.save_identity(&identity).unwrap();
        let good = store.disk.get(Family::Meta, keys::IDENTITY).unwrap().unwrap();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut changed = good.clone();
                changed[at] ^= 1 << bit;
                put(&store, keys::IDENTITY, &changed);
                is_refused(&store, &format!("bit {bit} of byte {at} of {}", good.len()));
            }
            put(&store, keys::IDENTITY, &good[..at]);
            is_refused(&store, &format!("{at} bytes of {}", good.len()));
        }
        put(&store, keys::IDENTITY, &[&good[..], b"x"].concat());
        is_refused(&store, "a byte too many");
        put(&store, keys::IDENTITY, &good);
        assert_eq!(store.identity("r0").unwrap(), identity);
    }

    #[test]
    fn p6_a_directory_that_has_lost_its_identity_is_no_new_one() {
        for (family, key) in [
            (Family::Meta, keys::VOTE.to_vec()),
            (Family::Log, keys::entry(1).to_vec()),
            (Family::Table, b"row".to_vec()),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path()).unwrap();
            assert_eq!(store.written_identity().unwrap(), None);
            let mut batch = Batch::default();
            batch.put(family, key, Vec::new());
            store.disk.write(batch).unwrap();
            is_refused(&store, &format!("a directory with nothing but {family:?}"));
        }
    }
}
