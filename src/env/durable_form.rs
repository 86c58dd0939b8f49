//! Which of the two ways of making an append durable is the faster one here and now.
//!
//! Where a flush is needed, RWF_DSYNC takes one kernel hand-over less than a write linked to an fdatasync, but
//! its flush runs in a kernel worker bound to the core of the disk's interrupt: while that core is busy with
//! somebody else it waits for a whole time slice. Measured, 4 KiB: 105 against 125 µs on a quiet machine, 4,000
//! against 125 with a computing thread on that core. Neither can be known at start-up, so both are
//! tried: the slower one rarely, and ever more rarely the longer it stays the slower one.
//!
//! Pure: no clock, no file. Both forms are equally durable, so a wrong choice costs time only.

use super::uring::Durability;

/// Appends up to this size are compared; larger ones take the form in use.
const BYTES_MAX: usize = 64 << 10;

/// The other form is tried again after this many appends at first,
const PROBE_AFTER_MIN: u32 = 64;

/// and at most after this many: one slow append in 16,384 does not show in the 99.9th percentile.
const PROBE_AFTER_MAX: u32 = 16_384;

/// Probes that must be faster, less those that were not, before the form changes.
const WINS_NEEDED: u32 = 3;

/// So much slower than the other form, as smoothed, the one in use is left at once.
const HOPELESS: u64 = 3;

/// A time above so many times the usual one counts as that: one outlier proves nothing, a few in a row do.
const OUTLIER: u64 = 4;

/// Compares the two forms by what appends took. Invariant: `PROBE_AFTER_MIN <= probe_after <= PROBE_AFTER_MAX`.
#[derive(Clone, Debug)]
pub(super) struct FormChooser {
    /// In use.
    form: Durability,
    /// Smoothed time of an append in this form, µs; `None` before the first.
    usual_us: Option<u64>,
    /// The same of the other form.
    other_us: Option<u64>,
    /// Appends until the other form is tried.
    countdown: u32,
    probe_after: u32,
    wins: u32,
}

impl Default for FormChooser {
    fn default() -> FormChooser {
        FormChooser {
            form: Durability::Dsync,
            usual_us: None,
            other_us: None,
            countdown: PROBE_AFTER_MIN,
            probe_after: PROBE_AFTER_MIN,
            wins: 0,
        }
    }
}

impl FormChooser {
    /// The form for the next append of `bytes`.
    pub(super) fn choose(&mut self, bytes: usize) -> Durability {
        if bytes > BYTES_MAX {
            return self.form;
        }
        self.countdown = self.countdown.saturating_sub(1);
        if self.countdown > 0 {
            return self.form;
        }
        self.countdown = self.probe_after;
        other(self.form)
    }

    /// An append of `bytes` in `form` took `took_us`.
    pub(super) fn observe(&mut self, form: Durability, bytes: usize, took_us: u64) {
        if bytes > BYTES_MAX {
            return;
        }
        if form == self.form {
            let usual = smooth(&mut self.usual_us, took_us, 8);
            if self.other_us.is_some_and(|other| usual > HOPELESS * other) {
                self.change();
            }
            return;
        }
        smooth(&mut self.other_us, took_us, 2);
        let Some(usual) = self.usual_us else { return };
        // In thousandths: DSYNC has to be faster by a tenth, the linked form by a quarter.
        let faster = if form == Durability::Dsync { 900 } else { 750 };
        if took_us * 1_000 < usual * faster {
            self.wins += 1;
            if self.wins >= WINS_NEEDED {
                return self.change();
            }
        } else {
            self.wins = self.wins.saturating_sub(1);
        }
        if self.wins > 0 {
            // The next probes come soon: one fast append proves nothing.
            self.countdown = self.countdown.min(PROBE_AFTER_MIN / 8);
        } else {
            self.probe_after = (self.probe_after * 2).min(PROBE_AFTER_MAX);
        }
    }

    /// From now on the other form.
    fn change(&mut self) {
        self.form = other(self.form);
        std::mem::swap(&mut self.usual_us, &mut self.other_us);
        self.wins = 0;
        self.probe_after = PROBE_AFTER_MIN;
        self.countdown = PROBE_AFTER_MIN;
    }
}

/// Takes `took_us` into an average over about `over` times; the average.
fn smooth(average_us: &mut Option<u64>, took_us: u64, over: u64) -> u64 {
    let average = average_us.get_or_insert(took_us);
    // One more, so that it can grow from nothing.
    let took_us = took_us.min((*average + 1) * OUTLIER);
    *average = (*average * (over - 1) + took_us) / over;
    *average
}

fn other(form: Durability) -> Durability {
    match form {
        Durability::Dsync => Durability::Linked,
        Durability::Linked | Durability::Later => Durability::Dsync,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 4096;

    /// Runs `appends` appends and returns how many took each form; a form takes what the closure says.
    fn run(chooser: &mut FormChooser, appends: u32, took_us: impl Fn(Durability) -> u64) -> (u32, u32) {
        let (mut dsync, mut linked) = (0, 0);
        for _ in 0..appends {
            let form = chooser.choose(BLOCK);
            match form {
                Durability::Dsync => dsync += 1,
                Durability::Linked => linked += 1,
                Durability::Later => panic!("an append is durable"),
            }
            chooser.observe(form, BLOCK, took_us(form));
        }
        (dsync, linked)
    }

    /// The faster form is kept, the slower one is tried ever more rarely.
    #[test]
    fn keeps_the_faster_form() {
        let mut chooser = FormChooser::default();
        let (_, linked) = run(&mut chooser, 50_000, |form| if form == Durability::Dsync { 105 } else { 125 });
        assert!((5..=12).contains(&linked), "{linked} probes");
    }

    /// When the interrupt's core gets busy, DSYNC is left within a few appends; when it is free again it comes back.
    #[test]
    fn leaves_a_form_that_got_slow_and_returns() {
        let mut chooser = FormChooser::default();
        let quiet = |form| if form == Durability::Dsync { 80 } else { 125 };
        let busy = |form| if form == Durability::Dsync { 4_000 } else { 125 };
        run(&mut chooser, 1_000, quiet);
        let (dsync, _) = run(&mut chooser, 1_000, busy);
        assert!(dsync < 10, "{dsync} slow appends");
        let (dsync, _) = run(&mut chooser, 50_000, busy);
        assert!(dsync < 15, "{dsync} slow appends");
        run(&mut chooser, 40_000, quiet);
        let (dsync, linked) = run(&mut chooser, 1_000, quiet);
        assert!(dsync > 900 && linked < 100, "{dsync} {linked}");
    }

    /// One slow append, or one fast probe, changes nothing.
    #[test]
    fn outliers_do_not_change_the_form() {
        let mut chooser = FormChooser::default();
        run(&mut chooser, 1_000, |form| if form == Durability::Dsync { 105 } else { 125 });
        chooser.observe(Durability::Dsync, BLOCK, 900);
        chooser.observe(Durability::Linked, BLOCK, 20);
        assert_eq!(chooser.form, Durability::Dsync);
    }

    /// Where times scatter, DSYNC is not left for the linked form that takes longer in the middle, whatever the outliers.
    #[test]
    fn scatter_does_not_change_the_form() {
        let mut chooser = FormChooser::default();
        let mut draws = 0_u64;
        let (mut dsync, mut linked) = (0, 0);
        for _ in 0..100_000 {
            let form = chooser.choose(BLOCK);
            // A full-period generator (Knuth, MMIX): the same draws in each run.
            draws = draws.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let draw = draws >> 33;
            // A quarter up or down, and one in 32 thirty times as long.
            let scatter = |usual: u64| usual * (75 + draw % 50) / 100 * if draw % 32 == 5 { 30 } else { 1 };
            let took_us = if form == Durability::Dsync { scatter(150) } else { scatter(210) };
            *(if form == Durability::Dsync { &mut dsync } else { &mut linked }) += 1;
            chooser.observe(form, BLOCK, took_us);
        }
        assert!(linked * 50 < dsync, "{dsync} {linked}");
    }

    /// Large appends take the form in use and are not compared with small ones.
    #[test]
    fn large_appends_do_not_count() {
        let mut chooser = FormChooser::default();
        for _ in 0..1_000 {
            assert_eq!(chooser.choose(1 << 20), Durability::Dsync);
            chooser.observe(Durability::Dsync, 1 << 20, 5_000);
        }
        assert_eq!(chooser.usual_us, None);
    }
}
