//! The store of one volume: a redb database with one table for each of the core's, and a few rows of the shell's own.
//!
//! A transaction is a closure: what it wrote is committed when it says `Ok` and forgotten when it says `Err`. A kill of
//! this process takes no commit back (`redo.rs`); a power cut takes back what came after
//! [`VolumeStore::make_durable`].

mod redo;
mod remains;
mod tables;

use crate::random;
use lento_core::store::Store;
use lento_core::store::StoreError;
use parking_lot::Mutex;
use redb::Database;
use redb::Durability;
use redb::ReadableDatabase;
use redb::TableDefinition;
use redo::Changes;
use redo::Redo;
pub use remains::Remains;
pub use remains::store_path;
pub use remains::witness_path;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::path::Path;
use std::path::PathBuf;
use tables::ReadTables;
use tables::WriteTables;

/// The shell's own rows: single values by name.
const SHELL: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("shell");
const UID: &str = "uid";
/// The last loss of presto's that the core has begun a new incarnation for.
const LOSS: &str = "loss";
/// Who opened it last; see [`VolumeStore::open`].
const LIFE: &str = "life";
const SYNCED: &str = "synced";
/// Up to which record tree and journal were synced before the last commit of all: there was none after it. Any other commit that is
/// durable takes it back.
const RESTED: &str = "rested";
/// The newest frame of the redo file that the database has durably.
const REDONE: &str = "redone";
/// Memory for pages, per volume.
const CACHE_BYTES: usize = 64 << 20;

/// Why a transaction did not happen.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError<E> {
    /// The database.
    #[error(transparent)]
    Store(StoreError),
    /// The closure said no.
    #[error(transparent)]
    Inner(E),
}

/// How the store was left when it was opened last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastTime {
    /// There was none: the store is new.
    New,
    /// The machine has not been down since, and this is the file that was open then: nothing was lost.
    Whole,
    /// The machine went down, or the file is an older one: what it says may be behind what was said to others.
    Lost,
}

/// One volume's store.
#[derive(Debug)]
pub struct VolumeStore {
    path: PathBuf,
    database: Database,
    redo: Mutex<Redo>,
    last_time: LastTime,
    /// This opening: the boot id and a random number.
    life: String,
    witness: PathBuf,
}

fn failed(path: &Path, error: impl std::fmt::Display) -> StoreError {
    StoreError(format!("{}: {error}", path.display()))
}

/// The database takes a damaged file for its own mistake and panics. It is this volume that must stop, not the agent.
fn guarded<T, E: From<StoreError>>(path: &Path, run: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it cannot be read");
        Err(failed(path, format_args!("the database is damaged: {text}")).into())
    })
}

impl<E> From<StoreError> for TransactionError<E> {
    fn from(error: StoreError) -> TransactionError<E> {
        TransactionError::Store(error)
    }
}

impl VolumeStore {
    /// Opens or makes the file at `path`. `boot` is the machine's boot id. Each opening leaves a number of its own in the
    /// store and in the file `witness`, which lies where no backup goes: a restored store has another one than the
    /// witness.
    ///
    /// # Errors
    /// The file is another's, damaged, or in use.
    pub fn open(path: &Path, boot: &str, witness: &Path) -> Result<VolumeStore, StoreError> {
        guarded(path, || VolumeStore::open_file(path, boot, witness))
    }

    fn open_file(path: &Path, boot: &str, witness: &Path) -> Result<VolumeStore, StoreError> {
        let database = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|error| failed(path, error))?;
        let redo_path = path.with_extension("redo");
        let redone = shell_row(&database, path, REDONE)?;
        let redone = redone.and_then(|value| value.try_into().ok()).map_or(0, u64::from_le_bytes);
        let redo = Redo::open(&redo_path, redone).map_err(|error| failed(&redo_path, error))?;
        let token = crate::random::id().map_err(|error| failed(path, error))?;
        let mut store = VolumeStore {
            path: path.to_owned(),
            database,
            redo: Mutex::new(redo),
            last_time: LastTime::New,
            life: format!("{boot} {token:016x}"),
            witness: witness.to_owned(),
        };
        let before = store.shell_row(LIFE)?;
        let seen = std::fs::read(witness).unwrap_or_default();
        store.last_time = match before {
            None => LastTime::New,
            Some(before) if before == seen && before.starts_with(boot.as_bytes()) => LastTime::Whole,
            Some(_) => LastTime::Lost,
        };
        // After a power cut the redo file says nothing: it would put the store ahead of the journal.
        if store.last_time == LastTime::Whole {
            store.redo()?;
        }
        // A loss stays known until the core has taken note of it.
        if store.last_time == LastTime::Lost {
            store.redo.lock().clear().map_err(|error| failed(&redo_path, error))?;
        } else {
            store.begin_life()?;
        }
        Ok(store)
    }

    /// From now on this opening is the last one. A kill in between shows as a loss, which does no harm.
    fn begin_life(&self) -> Result<(), StoreError> {
        self.put_shell_rows(&[(LIFE, self.life.as_bytes())])?;
        std::fs::write(&self.witness, &self.life).map_err(|error| failed(&self.witness, error))
    }

    /// Does again what a kill took from the database.
    fn redo(&self) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        self.redo
            .lock()
            .replay(&mut WriteTables::unnoted(&transaction, &self.path))
            .map_err(|error| failed(&self.path.with_extension("redo"), error))?;
        transaction.commit().map_err(|error| failed(&self.path, error))
    }

    fn begin(&self) -> Result<redb::WriteTransaction, StoreError> {
        let mut transaction = self.database.begin_write().map_err(|error| failed(&self.path, error))?;
        transaction.set_durability(Durability::None).map_err(|error| failed(&self.path, error))?;
        Ok(transaction)
    }

    /// Where the conflicts of this volume are kept: beside its store.
    #[must_use]
    pub fn conflicts(&self) -> PathBuf {
        self.path.with_extension("conflicts")
    }

    /// How it was left.
    #[must_use]
    pub fn last_time(&self) -> LastTime {
        self.last_time
    }

    /// The core has begun a new incarnation because of [`LastTime::Lost`], or of a loss that presto told (0: none of
    /// its): this opening counts from now on, and that loss no longer.
    ///
    /// # Errors
    /// The database's own, or the witness cannot be written.
    pub fn loss_noted(&self, of_presto: u64) -> Result<(), StoreError> {
        if of_presto != 0 {
            self.put_shell_rows(&[(LOSS, &of_presto.to_le_bytes())])?;
        }
        self.begin_life()
    }

    /// Whether presto tells a loss that the core knows nothing of.
    ///
    /// # Errors
    /// The database's own.
    pub fn is_new_loss(&self, of_presto: u64) -> Result<bool, StoreError> {
        Ok(of_presto != 0 && self.shell_row(LOSS)?.as_deref() != Some(&of_presto.to_le_bytes()))
    }

    /// The id of this replica's cache; `None` while the store is new.
    ///
    /// # Errors
    /// The database's own.
    pub fn uid(&self) -> Result<Option<u64>, StoreError> {
        let row = self.shell_row(UID)?;
        Ok(row.and_then(|value| value.try_into().ok()).map(u64::from_le_bytes))
    }

    /// Sets the id of this replica's cache, durably.
    ///
    /// # Errors
    /// The database's own.
    pub fn set_uid(&self, uid: u64) -> Result<(), StoreError> {
        self.put_shell_rows(&[(UID, &uid.to_le_bytes())])
    }

    /// Makes an id for a new store.
    ///
    /// # Errors
    /// The database's own, or no random numbers.
    pub fn make_uid(&self) -> Result<u64, StoreError> {
        let uid = random::id().map_err(|error| failed(&self.path, error))?;
        self.set_uid(uid)?;
        Ok(uid)
    }

    /// Runs a write transaction and commits it.
    ///
    /// # Errors
    /// The database's, or what the closure says; nothing was written then.
    pub fn write<R, E>(
        &self,
        run: impl FnOnce(&mut dyn Store) -> Result<R, E>,
    ) -> Result<R, TransactionError<E>> {
        guarded(&self.path, || self.transact(run))
    }

    fn transact<R, E>(
        &self,
        run: impl FnOnce(&mut dyn Store) -> Result<R, E>,
    ) -> Result<R, TransactionError<E>> {
        let transaction = self.begin().map_err(TransactionError::Store)?;
        let (result, changes) = {
            let mut tables = WriteTables::new(&transaction, &self.path);
            (run(&mut tables), tables.into_changes())
        };
        match result {
            Ok(value) => self.commit(transaction, &changes).map(|()| value).map_err(TransactionError::Store),
            Err(error) => {
                transaction.abort().map_err(|error| TransactionError::Store(failed(&self.path, error)))?;
                Err(TransactionError::Inner(error))
            }
        }
    }

    fn commit(&self, transaction: redb::WriteTransaction, changes: &Changes) -> Result<(), StoreError> {
        if changes.is_empty() {
            return transaction.abort().map_err(|error| failed(&self.path, error));
        }
        let redo_failed = |error| failed(&self.path.with_extension("redo"), error);
        let mut redo = self.redo.lock();
        redo.append(changes).map_err(redo_failed)?;
        match transaction.commit() {
            Ok(()) => Ok(()),
            Err(error) => {
                redo.take_back(changes).map_err(redo_failed)?;
                Err(failed(&self.path, error))
            }
        }
    }

    /// Looks at the last committed state, beside whoever writes.
    ///
    /// # Errors
    /// The database's, or what the closure says.
    pub fn read<R, E>(&self, run: impl FnOnce(&dyn Store) -> Result<R, E>) -> Result<R, TransactionError<E>> {
        guarded(&self.path, || {
            let transaction = self.database.begin_read().map_err(|error| failed(&self.path, error))?;
            run(&ReadTables::new(&transaction, &self.path)).map_err(TransactionError::Inner)
        })
    }

    /// Makes every commit so far durable. Blocks for the disk.
    ///
    /// # Errors
    /// The database's own.
    pub fn make_durable(&self, recno: u64) -> Result<(), StoreError> {
        self.put_shell_rows(&[(SYNCED, &recno.to_le_bytes())])
    }

    /// The same for the last time: nothing is stored after it, and tree and journal are synced up to this record.
    ///
    /// # Errors
    /// The database's own.
    pub fn rest(&self, recno: u64) -> Result<(), StoreError> {
        self.put_shell_rows(&[(SYNCED, &0_u64.to_le_bytes()), (RESTED, &recno.to_le_bytes())])
    }

    /// Up to which record that was, if nothing has been stored since.
    ///
    /// # Errors
    /// The database's own.
    pub fn rested(&self) -> Result<Option<u64>, StoreError> {
        let row = self.shell_row(RESTED)?;
        Ok(row.and_then(|value| value.try_into().ok()).map(u64::from_le_bytes))
    }

    fn shell_row(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        guarded(&self.path, || shell_row(&self.database, &self.path, name))
    }

    /// The only durable commit: everything before it is durable as well.
    fn put_shell_rows(&self, rows: &[(&str, &[u8])]) -> Result<(), StoreError> {
        guarded(&self.path, || self.commit_shell_rows(rows))
    }

    fn commit_shell_rows(&self, rows: &[(&str, &[u8])]) -> Result<(), StoreError> {
        let fail = |error: &dyn std::fmt::Display| failed(&self.path, error);
        let mut transaction = self.database.begin_write().map_err(|error| fail(&error))?;
        transaction.set_durability(Durability::Immediate).map_err(|error| fail(&error))?;
        let mut redo = self.redo.lock();
        {
            let mut table = transaction.open_table(SHELL).map_err(|error| fail(&error))?;
            let redone = redo.last().to_le_bytes();
            let always = [(RESTED, &[][..]), (REDONE, redone.as_slice())];
            for (name, value) in always.into_iter().chain(rows.iter().copied()) {
                table.insert(name, value).map_err(|error| fail(&error))?;
            }
        }
        transaction.commit().map_err(|error| fail(&error))?;
        redo.clear().map_err(|error| failed(&self.path.with_extension("redo"), error))
    }
}

fn shell_row(database: &Database, path: &Path, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let fail = |error: &dyn std::fmt::Display| failed(path, error);
    let transaction = database.begin_read().map_err(|error| fail(&error))?;
    let table = match transaction.open_table(SHELL) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(fail(&error)),
    };
    let row = table.get(name).map_err(|error| fail(&error))?;
    Ok(row.map(|value| value.value().to_vec()))
}

/// The machine's boot id.
///
/// # Errors
/// /proc is not mounted.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests;
