//! Who this data directory is: written before the replica speaks, and never changed after.

use holdfast_wire::proto;
use prost::Message as _;
use uuid::Uuid;

use super::disk::{Batch, Family};
use super::{FORMAT, OpenError, Store, corrupt, keys};

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
        let read = self
            .disk
            .get(Family::Meta, keys::IDENTITY)
            .map_err(|error| self.failed("identity", &error))?;
        let Some(bytes) = read else { return Ok(None) };
        let identity =
            Identity::decode(&bytes[..]).map_err(|error| self.failed("identity", &corrupt(error.to_string())))?;
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
        batch.put(Family::Meta, keys::IDENTITY, identity.encode_to_vec());
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
}
