//! The tables of `proto/peer.fbs`, written by hand in the form that flatc generates (no released flatc of the
//! distribution fits the crate's version): accessors, builder, verifier. `super` says what the fields mean together.
//!
//! Bytes from the network reach the accessors only through `read`, which has the `Verifier` look at all of them before.

#![allow(unsafe_code, reason = "reading fields of a table is unsafe unless its bytes were verified; `read` does that")]

use flatbuffers::{
    FlatBufferBuilder, Follow, ForwardsUOffset, InvalidFlatbuffer, Push, PushAlignment, Table, VOffsetT, Vector,
    Verifiable, Verifier, WIPOffset,
};

/// Bytes 4 to 8 of every envelope; the last of them is the version.
pub const IDENTIFIER: &str = "RLP1";

/// `struct LogId`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct LogIdBytes([u8; 16]);

/// `struct Vote`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct VoteBytes([u8; 24]);

impl LogIdBytes {
    /// From its fields.
    pub fn new(term: u64, index: u64) -> LogIdBytes {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&term.to_le_bytes());
        bytes[8..].copy_from_slice(&index.to_le_bytes());
        LogIdBytes(bytes)
    }

    /// Raft's term.
    pub fn term(&self) -> u64 {
        field(&self.0, 0)
    }

    /// Raft's index.
    pub fn index(&self) -> u64 {
        field(&self.0, 8)
    }
}

impl VoteBytes {
    /// From its fields.
    pub fn new(term: u64, node: u64, committed: bool) -> VoteBytes {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&term.to_le_bytes());
        bytes[8..16].copy_from_slice(&node.to_le_bytes());
        bytes[16] = u8::from(committed);
        VoteBytes(bytes)
    }

    /// Raft's term.
    pub fn term(&self) -> u64 {
        field(&self.0, 0)
    }

    /// Whose vote.
    pub fn node(&self) -> u64 {
        field(&self.0, 8)
    }

    /// Granted by a majority.
    pub fn committed(&self) -> bool {
        self.0[16] != 0
    }
}

fn field(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..].first_chunk().copied().expect("fields end inside the struct"))
}

macro_rules! fixed_struct {
    ($name:ident) => {
        impl<'a> Follow<'a> for $name {
            type Inner = $name;

            // SAFETY: asks for nothing that the trait does not; the bytes are taken with a bounds check.
            unsafe fn follow(buf: &'a [u8], loc: usize) -> $name {
                $name(buf[loc..].first_chunk().copied().expect("verified to lie inside the buffer"))
            }
        }

        impl Verifiable for $name {
            fn run_verifier(verifier: &mut Verifier<'_, '_>, pos: usize) -> Result<(), InvalidFlatbuffer> {
                verifier.is_aligned::<u64>(pos)?;
                verifier.in_buffer::<$name>(pos)
            }
        }

        impl Push for $name {
            type Output = $name;

            // SAFETY: asks for nothing that the trait does not; the copy panics if `dst` had another length.
            unsafe fn push(&self, dst: &mut [u8], _written_len: usize) {
                dst.copy_from_slice(&self.0);
            }

            fn alignment() -> PushAlignment {
                PushAlignment::new(8)
            }
        }
    };
}

fixed_struct!(LogIdBytes);
fixed_struct!(VoteBytes);

/// `table Envelope`, as read.
#[derive(Clone, Copy, Debug)]
pub struct EnvelopeTable<'a> {
    table: Table<'a>,
}

/// Fields of an envelope to be written; what is absent takes no bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct EnvelopeArgs<'a> {
    /// What it is.
    pub kind: u8,
    /// Shard uid.
    pub group: u64,
    /// See the schema.
    pub vote: Option<VoteBytes>,
    /// See the schema.
    pub log_id: Option<LogIdBytes>,
    /// See the schema.
    pub commit: Option<LogIdBytes>,
    /// See the schema.
    pub node: u64,
    /// See the schema.
    pub flag: bool,
    /// See the schema.
    pub membership_log_id: Option<LogIdBytes>,
    /// See the schema.
    pub membership: Option<&'a [u8]>,
    /// See the schema.
    pub cause: Option<&'a str>,
    /// See the schema.
    pub flush_us: u32,
    /// See the schema.
    pub hold_off_ms: u32,
}

const VT_KIND: VOffsetT = 4;
const VT_GROUP: VOffsetT = 6;
const VT_VOTE: VOffsetT = 8;
const VT_LOG_ID: VOffsetT = 10;
const VT_COMMIT: VOffsetT = 12;
const VT_NODE: VOffsetT = 14;
const VT_FLAG: VOffsetT = 16;
const VT_MEMBERSHIP_LOG_ID: VOffsetT = 18;
const VT_MEMBERSHIP: VOffsetT = 20;
const VT_CAUSE: VOffsetT = 22;
const VT_FLUSH_US: VOffsetT = 24;
const VT_HOLD_OFF_MS: VOffsetT = 26;

impl<'a> Follow<'a> for EnvelopeTable<'a> {
    type Inner = EnvelopeTable<'a>;

    // SAFETY: as the trait says, a valid table lies at `loc`; that is what `Table::new` asks for.
    unsafe fn follow(buf: &'a [u8], loc: usize) -> EnvelopeTable<'a> {
        // SAFETY: see above.
        EnvelopeTable { table: unsafe { Table::new(buf, loc) } }
    }
}

impl Verifiable for EnvelopeTable<'_> {
    fn run_verifier(verifier: &mut Verifier<'_, '_>, pos: usize) -> Result<(), InvalidFlatbuffer> {
        verifier
            .visit_table(pos)?
            .visit_field::<u8>("kind", VT_KIND, false)?
            .visit_field::<u64>("group", VT_GROUP, false)?
            .visit_field::<VoteBytes>("vote", VT_VOTE, false)?
            .visit_field::<LogIdBytes>("log_id", VT_LOG_ID, false)?
            .visit_field::<LogIdBytes>("commit", VT_COMMIT, false)?
            .visit_field::<u64>("node", VT_NODE, false)?
            .visit_field::<bool>("flag", VT_FLAG, false)?
            .visit_field::<LogIdBytes>("membership_log_id", VT_MEMBERSHIP_LOG_ID, false)?
            .visit_field::<ForwardsUOffset<Vector<'_, u8>>>("membership", VT_MEMBERSHIP, false)?
            .visit_field::<ForwardsUOffset<&str>>("cause", VT_CAUSE, false)?
            .visit_field::<u32>("flush_us", VT_FLUSH_US, false)?
            .visit_field::<u32>("hold_off_ms", VT_HOLD_OFF_MS, false)?
            .finish();
        Ok(())
    }
}

impl<'a> EnvelopeTable<'a> {
    fn scalar<T: Follow<'a, Inner = T> + 'a>(&self, slot: VOffsetT) -> Option<T> {
        // SAFETY: the only way to a table is `read`, whose verifier has checked the field of this slot as a `T`: each slot is
        // read below with the type that `run_verifier` names for it.
        unsafe { self.table.get::<T>(slot, None) }
    }

    /// What it is.
    pub fn kind(&self) -> u8 {
        self.scalar::<u8>(VT_KIND).unwrap_or(0)
    }

    /// Shard uid.
    pub fn group(&self) -> u64 {
        self.scalar::<u64>(VT_GROUP).unwrap_or(0)
    }

    /// See the schema.
    pub fn vote(&self) -> Option<VoteBytes> {
        self.scalar::<VoteBytes>(VT_VOTE)
    }

    /// See the schema.
    pub fn log_id(&self) -> Option<LogIdBytes> {
        self.scalar::<LogIdBytes>(VT_LOG_ID)
    }

    /// See the schema.
    pub fn commit(&self) -> Option<LogIdBytes> {
        self.scalar::<LogIdBytes>(VT_COMMIT)
    }

    /// See the schema.
    pub fn node(&self) -> u64 {
        self.scalar::<u64>(VT_NODE).unwrap_or(0)
    }

    /// See the schema.
    pub fn flag(&self) -> bool {
        self.scalar::<bool>(VT_FLAG).unwrap_or(false)
    }

    /// See the schema.
    pub fn membership_log_id(&self) -> Option<LogIdBytes> {
        self.scalar::<LogIdBytes>(VT_MEMBERSHIP_LOG_ID)
    }

    /// See the schema.
    pub fn membership(&self) -> Option<&'a [u8]> {
        // SAFETY: the verifier has checked this slot as a vector of bytes; see `scalar`.
        let found = unsafe { self.table.get::<ForwardsUOffset<Vector<'a, u8>>>(VT_MEMBERSHIP, None) };
        found.map(|vector| vector.bytes())
    }

    /// See the schema.
    pub fn cause(&self) -> Option<&'a str> {
        // SAFETY: the verifier has checked this slot as a string of UTF-8; see `scalar`.
        unsafe { self.table.get::<ForwardsUOffset<&'a str>>(VT_CAUSE, None) }
    }

    /// See the schema.
    pub fn flush_us(&self) -> u32 {
        self.scalar::<u32>(VT_FLUSH_US).unwrap_or(0)
    }

    /// See the schema.
    pub fn hold_off_ms(&self) -> u32 {
        self.scalar::<u32>(VT_HOLD_OFF_MS).unwrap_or(0)
    }
}

/// An envelope's bytes.
#[must_use]
pub fn write(args: &EnvelopeArgs<'_>) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::with_capacity(192);
    let membership = args.membership.map(|bytes| builder.create_vector(bytes));
    let cause = args.cause.map(|text| builder.create_string(text));
    let start = builder.start_table();
    if let Some(cause) = cause {
        builder.push_slot_always::<WIPOffset<_>>(VT_CAUSE, cause);
    }
    if let Some(membership) = membership {
        builder.push_slot_always::<WIPOffset<_>>(VT_MEMBERSHIP, membership);
    }
    if let Some(id) = args.membership_log_id {
        builder.push_slot_always(VT_MEMBERSHIP_LOG_ID, id);
    }
    if let Some(id) = args.commit {
        builder.push_slot_always(VT_COMMIT, id);
    }
    if let Some(id) = args.log_id {
        builder.push_slot_always(VT_LOG_ID, id);
    }
    if let Some(vote) = args.vote {
        builder.push_slot_always(VT_VOTE, vote);
    }
    builder.push_slot(VT_NODE, args.node, 0);
    builder.push_slot(VT_GROUP, args.group, 0);
    builder.push_slot(VT_HOLD_OFF_MS, args.hold_off_ms, 0);
    builder.push_slot(VT_FLUSH_US, args.flush_us, 0);
    builder.push_slot(VT_FLAG, args.flag, false);
    builder.push_slot(VT_KIND, args.kind, 0);
    let root = builder.end_table(start);
    builder.finish(root, Some(IDENTIFIER));
    let (bytes, start) = builder.collapse();
    if start == 0 { bytes } else { bytes[start..].to_vec() }
}

/// Reads an envelope, verified as a whole.
///
/// # Errors
/// In words, when it is none.
pub fn read(bytes: &[u8]) -> Result<EnvelopeTable<'_>, String> {
    // The identifier lies behind the root's offset.
    if bytes.get(4..8) != Some(IDENTIFIER.as_bytes()) {
        return Err(format!("it does not carry the identifier {IDENTIFIER}"));
    }
    flatbuffers::root::<EnvelopeTable<'_>>(bytes).map_err(|error| error.to_string())
}
