//! What tests and operators do to a disk by hand, and at once for good: look at files, put them there, take them away, wear
//! blocks out.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    rc::Rc,
};

use super::{Entry, SimDisk, node::Node};
use crate::limits::BLOCK_BYTES;

impl SimDisk {
    /// Paths of all files, sorted.
    pub fn paths(&self) -> Vec<PathBuf> {
        let names = self.device.names.borrow();
        names.iter().filter(|(_, entry)| matches!(entry, Entry::File(_))).map(|(path, _)| path.clone()).collect()
    }

    /// How many handles to files there are.
    pub fn open_files(&self) -> usize {
        Rc::strong_count(&self.device.open) - 1
    }

    /// A file's present content.
    ///
    /// # Panics
    /// When it is not there.
    pub fn content(&self, path: impl AsRef<Path>) -> Vec<u8> {
        self.device.node(path.as_ref()).expect("the test knows its files").borrow().current.all().into()
    }

    /// Replaces or makes a file, durably, as if by magic.
    pub fn set_content(&self, path: impl AsRef<Path>, bytes: Vec<u8>) {
        let node = Node::with_content(path.as_ref().into(), bytes);
        let entry = Entry::File(Rc::new(RefCell::new(node)));
        self.device.names_durable.borrow_mut().insert(path.as_ref().into(), entry.clone());
        self.device.names.borrow_mut().insert(path.as_ref().into(), entry);
    }

    /// Removes a file, durably, as if by magic.
    pub fn delete(&self, path: impl AsRef<Path>) {
        self.device.names_durable.borrow_mut().remove(path.as_ref());
        self.device.names.borrow_mut().remove(path.as_ref());
    }

    /// Removes a directory with all that is in it, durably, as if by magic; whether there was one.
    pub fn delete_dir(&self, path: impl AsRef<Path>) -> bool {
        let was_there = self.device.names.borrow().contains_key(path.as_ref());
        self.device.forget_dir(path.as_ref());
        was_there
    }

    /// The block with this byte of a file cannot be read any more, whatever is written there.
    ///
    /// # Panics
    /// When the file is not there.
    pub fn lose_block(&self, path: impl AsRef<Path>, position: u64) {
        let node = self.device.node(path.as_ref()).expect("the test knows its files");
        node.borrow_mut().lose_block(position / BLOCK_BYTES as u64);
    }

    /// Flips one bit of a file, as a dying device does.
    ///
    /// # Panics
    /// When the file or the byte is not there.
    pub fn flip_bit(&self, path: impl AsRef<Path>, position: u64, bit: u32) {
        let node = self.device.node(path.as_ref()).expect("the test knows its files");
        let node = &mut *node.borrow_mut();
        let number = position / BLOCK_BYTES as u64;
        assert!(position < node.current.len(), "the test knows its bytes");
        let old = node.current.block(number).map_or_else(|| vec![0; BLOCK_BYTES], |block| block.to_vec());
        let mut block = old;
        block[(position % BLOCK_BYTES as u64) as usize] ^= 1 << bit;
        node.replace_block(number, &block.into());
    }
}
