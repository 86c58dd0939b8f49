//! How much fits on a simulated disk, and what it keeps for what frees space.

use super::SimDisk;

impl SimDisk {
    /// Sets how many bytes all files together may have; `None`: no bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.device.capacity.set(bytes);
    }

    /// How many bytes all files together may have; `None`: no bound.
    pub fn capacity(&self) -> Option<u64> {
        self.device.capacity.get()
    }

    /// From now on so many bytes are kept for what frees space.
    pub fn keep_reserve(&self, bytes: u64) {
        self.device.reserve.set(Some(bytes));
    }

    /// Bytes of all files together.
    pub fn used_bytes(&self) -> u64 {
        self.device.used_bytes()
    }
}
