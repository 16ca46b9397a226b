//! The main process, from its clone to its execution.

use core::ffi::c_char;
use core::ptr::{null, read_volatile, write_volatile};

use crate::protocol::{Decoded, MAX_STRINGS, PlanRlimit, Step, Texts, flag};
use crate::sys::{self, Errno, pr};
use crate::zygote::pointer;
use crate::{At, Failure, exec, leader, waiting};

/// Pointers to arguments and variables, each list closed by a null. A zygote never touches this memory, so it
/// has none.
static mut ARGUMENTS: [*const c_char; MAX_STRINGS + 1] = [null(); MAX_STRINGS + 1];
static mut VARIABLES: [*const c_char; MAX_STRINGS + 1] = [null(); MAX_STRINGS + 1];

/// The stack of a main process until it executes, while the init stands still.
#[repr(align(16))]
struct Stack([u8; 16 * 1024]);
static mut STACK: Stack = Stack([0; 16 * 1024]);

/// A program to become.
pub(crate) struct MainProcess<'a> {
    plan: &'a Decoded<'a>,
    /// Whether it is killed when its parent ends, which is not of its PID namespace.
    tied: bool,
    /// Why it came to nothing, told through memory that both processes share.
    failure: Option<Failure>,
}

impl<'a> MainProcess<'a> {
    pub(crate) fn new(plan: &'a Decoded<'a>) -> Self {
        Self { plan, tied: false, failure: None }
    }

    /// The same, killed when its parent ends.
    pub(crate) fn tied(plan: &'a Decoded<'a>) -> Self {
        Self { plan, tied: true, failure: None }
    }

    /// Gives up every right the program is not to have and executes it. Returns only why it could not.
    pub(crate) fn execute(&mut self) -> Failure {
        match self.prepare() {
            Ok(()) => (Step::Execute, self.execute_program()),
            Err(failure) => failure,
        }
    }

    fn prepare(&self) -> Result<(), Failure> {
        let plan = self.plan;
        sys::plain(sys::SETSID, [0; 5]).at(Step::NewSession)?;
        for PlanRlimit { resource, soft, hard } in plan.rlimits {
            let limit = [soft, hard];
            // SAFETY: a pair of limits to read; the old ones are not asked for.
            unsafe { sys::call(sys::PRLIMIT64, [0, resource as usize, limit.as_ptr() as usize, 0, 0]) }
                .at(Step::Rlimit)?;
        }
        if !plan.has(flag::ONE_USER) {
            let groups = plan.groups.bytes();
            // SAFETY: as many group IDs as the plan says, which the decoder has checked to be there.
            unsafe { sys::call(sys::SETGROUPS, [plan.fixed.groups as usize, groups.as_ptr() as usize, 0, 0, 0]) }
                .at(Step::Groups)?;
        }
        let (uid, gid) = (plan.fixed.uid as usize, plan.fixed.gid as usize);
        sys::plain(sys::SETRESGID, [gid, gid, gid, 0, 0]).at(Step::Group)?;
        let kept = plan.fixed.kept_capabilities;
        if kept != 0 {
            sys::prctl(pr::SET_KEEPCAPS, 1, 0).at(Step::Capabilities)?;
        }
        sys::plain(sys::SETRESUID, [uid, uid, uid, 0, 0]).at(Step::User)?;
        // The change of user may have opened the memory that is shared with the parent (fs.suid_dumpable=1).
        let _ = sys::prctl(pr::SET_DUMPABLE, 0, 0);
        // Only the permitted ones survive a change of user, and not beyond what this kernel or the host has.
        sys::set_capabilities(kept, kept).at(Step::Capabilities)?;
        for capability in (0..64).filter(|capability| kept >> capability & 1 == 1) {
            sys::prctl(pr::CAP_AMBIENT, pr::CAP_AMBIENT_RAISE, capability).at(Step::Capabilities)?;
        }
        if self.tied {
            tie_to_parent().at(Step::TieToParent)?;

        }
        // As the user it runs as, who may be barred from it.
        // SAFETY: a NUL-terminated string of the plan.
        unsafe { sys::call(sys::CHDIR, [plan.cwd.as_ptr() as usize, 0, 0, 0, 0]) }.at(Step::Directory)?;
        sys::block_signals(0);
        Ok(())
    }

    /// Executes the program, looked for where the plan says if its name has no slash.
    fn execute_program(&self) -> Errno {
        // SAFETY: one thread runs in this memory at a time, and nothing else refers to these.
        let (arguments, variables) = unsafe {
            (fill(&raw mut ARGUMENTS, self.plan.args), fill(&raw mut VARIABLES, self.plan.variables))
        };
        let mut args = self.plan.args;
        let Some(program) = args.next() else { return sys::EINVAL };
        let execute = |path: &[u8]| {
            // SAFETY: a NUL-terminated path, and two lists of such strings, each closed by a null.
            let done = unsafe {
                sys::call(sys::EXECVE, [path.as_ptr() as usize, arguments as usize, variables as usize, 0, 0])
            };
            done.err().unwrap_or(sys::EINVAL)
        };
        if program.contains(&b'/') {
            return execute(program);
        }
        let search = &self.plan.search[..self.plan.search.len() - 1];
        let mut failure = sys::ENOENT;
        for dir in search.split(|byte| *byte == b':') {
            let mut path = [0; PATH_MAX];
            match join(dir, program, &mut path) {
                Some(path) => match execute(path) {
                    // As a shell does: what may not be executed is told only if nothing else is found.
                    sys::EACCES => failure = sys::EACCES,
                    sys::ENOENT | sys::ENOTDIR => {}
                    other => return other,
                },
                None => failure = sys::ENAMETOOLONG,
            }
        }
        failure
    }
}

/// Has the kernel kill this process when its parent ends. A change of user would undo it.
///
/// The parent may have been killed before. It does not show in this process's own numbers: a parent outside of the PID namespace
/// has number 0 here, and so has the one that takes its place. But it is only killed once the leash is let go.
fn tie_to_parent() -> Result<(), Errno> {
    sys::prctl(pr::SET_PDEATHSIG, sys::SIGKILL as usize, 0)?;
    if waiting::has_ended(exec::LEASH) { Err(sys::EPERM) } else { Ok(()) }
}

const PATH_MAX: usize = 4096;

/// `dir/program`, where an empty directory is the working directory.
fn join<'b>(dir: &[u8], program: &[u8], path: &'b mut [u8; PATH_MAX]) -> Option<&'b [u8]> {
    let dir = if dir.is_empty() { b"." } else { dir };
    let length = dir.len() + 1 + program.len();
    let place = path.get_mut(..length)?;
    place[..dir.len()].copy_from_slice(dir);
    place[dir.len()] = b'/';
    place[dir.len() + 1..].copy_from_slice(program);
    Some(place)
}

/// Fills a list with the addresses of texts.
///
/// # Safety
/// Nothing else refers to the list.
unsafe fn fill(list: *mut [*const c_char; MAX_STRINGS + 1], texts: Texts<'_>) -> *const *const c_char {
    // SAFETY: promised by the caller.
    let list = unsafe { &mut *list };
    // The last place stays null: the decoder has checked that there are at most as many texts.
    for (place, text) in list[..MAX_STRINGS].iter_mut().zip(texts) {
        *place = pointer(text);
    }
    list.as_ptr()
}

/// Starts it, and waits until it has executed its program. The two share memory until then, so that nothing
/// is copied and a failure needs no channel of its own; the init stands still.
pub(crate) fn start(process: &mut MainProcess<'_>) -> Result<u32, Failure> {
    let process: *mut MainProcess<'_> = process;
    // SAFETY: the stack is used once in a process's life, by this child. `run_main` gets what it expects. The
    // caller's frame stays where it is until the child has executed or ended.
    let pid = unsafe {
        let top = (&raw mut STACK.0).cast::<u8>().add(size_of::<Stack>());
        sys::vfork_on(top, run_main, process.cast::<u8>().cast_const())
    }
    .at(Step::Fork)?;
    // SAFETY: the child is done with it. It wrote behind the compiler's back.
    match unsafe { read_volatile(&raw const (*process).failure) } {
        None => Ok(pid as u32),
        Some(failure) => Err(failure),
    }
}

extern "C" fn run_main(process: *const u8) -> ! {
    let process = process.cast_mut().cast::<MainProcess<'_>>();
    // SAFETY: `start` passed it, and stands still meanwhile.
    let failure = unsafe { (*process).execute() };
    // SAFETY: as above.
    unsafe { write_volatile(&raw mut (*process).failure, Some(failure)) };
    sys::exit(127)
}

const _: () = assert!(leader::REPORT > 2);
