//! The calls of MPI that are used, each checked: messages that are on their way, and a look at those that came.
//!
//! Every call is made by one thread at a time ([`Processes`](crate::Processes) holds a lock), as `MPI_THREAD_SERIALIZED` asks for.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

use mpi::ffi;
use resflow::error::GroupError;

/// What MPI says of a call.
fn check(code: c_int, call: &str) -> Result<(), GroupError> {
    if code == 0 { Ok(()) } else { Err(GroupError::Transport(format!("{call} of MPI failed with code {code}"))) }
}

/// An error handler that leaves the code to the caller. MPI passes more arguments, which are left alone.
unsafe extern "C" fn leave(_: *mut ffi::MPI_Comm, _: *mut c_int) {}

/// Lets MPI return its errors instead of ending all processes.
pub(crate) fn return_errors() -> Result<(), GroupError> {
    let leave: unsafe extern "C" fn(*mut ffi::MPI_Comm, *mut c_int) = leave;
    let mut handler = MaybeUninit::uninit();
    // SAFETY: a function that looks at none of its arguments may be called with more of them by the C convention; MPI writes
    // the handler before it is used.
    let made = unsafe {
        let leave = std::mem::transmute::<
            unsafe extern "C" fn(*mut ffi::MPI_Comm, *mut c_int),
            unsafe extern "C" fn(*mut ffi::MPI_Comm, *mut c_int, ...),
        >(leave);
        check(ffi::MPI_Comm_create_errhandler(Some(leave), handler.as_mut_ptr()), "creating an error handler")
    };
    made?;
    // SAFETY: the handler was made above.
    let set = unsafe { ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, handler.assume_init()) };
    check(set, "setting an error handler")
}

/// A message on its way. The buffer lives as long as MPI uses it: a request that is not done when it is dropped leaves it to MPI.
pub(crate) struct Request {
    raw: ffi::MPI_Request,
    buffer: Vec<u8>,
    done: bool,
}

// SAFETY: a request is a handle that any thread may use, one at a time.
unsafe impl Send for Request {}

impl Request {
    /// Sends bytes to another process.
    pub(crate) fn send(to: usize, tag: c_int, buffer: Vec<u8>) -> Result<Self, GroupError> {
        let mut raw = MaybeUninit::uninit();
        let count = buffer.len() as c_int;
        // SAFETY: the buffer has `count` bytes and is neither moved nor freed before MPI is done (`Drop`).
        let code = unsafe {
            let start = buffer.as_ptr().cast::<c_void>();
            let (bytes, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
            ffi::MPI_Isend(start, count, bytes, to as c_int, tag, world, raw.as_mut_ptr())
        };
        check(code, "sending")?;
        // SAFETY: MPI wrote it, since the call succeeded.
        Ok(Self { raw: unsafe { raw.assume_init() }, buffer, done: false })
    }

    /// Receives so many bytes that another process has sent.
    pub(crate) fn receive(from: usize, tag: c_int, count: usize) -> Result<Self, GroupError> {
        let mut buffer = vec![0; count];
        let mut raw = MaybeUninit::uninit();
        // SAFETY: as in `send`; the message has `count` bytes, as the look at it said.
        let code = unsafe {
            let start = buffer.as_mut_ptr().cast::<c_void>();
            let (bytes, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
            ffi::MPI_Irecv(start, count as c_int, bytes, from as c_int, tag, world, raw.as_mut_ptr())
        };
        check(code, "receiving")?;
        // SAFETY: MPI wrote it, since the call succeeded.
        Ok(Self { raw: unsafe { raw.assume_init() }, buffer, done: false })
    }

    /// Whether MPI is done with it.
    pub(crate) fn is_done(&mut self) -> Result<bool, GroupError> {
        let mut flag = 0;
        if !self.done {
            // SAFETY: the request is one that MPI made and that is not done.
            let code = unsafe { ffi::MPI_Test(&raw mut self.raw, &raw mut flag, ffi::RSMPI_STATUS_IGNORE) };
            check(code, "testing a request")?;
            self.done = flag != 0;
        }
        Ok(self.done)
    }

    /// Its bytes.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// The bytes of a request that is done.
    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        debug_assert!(self.done, "MPI writes to it still");
        std::mem::take(&mut self.buffer)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.done {
            std::mem::forget(std::mem::take(&mut self.buffer));
        }
    }
}

/// A message that has come: who sent it, with which tag, and its bytes.
pub(crate) struct Arrival {
    pub(crate) from: usize,
    pub(crate) tag: c_int,
    pub(crate) count: usize,
}

/// Looks for a message from a process, or from any, with a tag, or with any.
pub(crate) fn look(from: Option<usize>, tag: Option<c_int>) -> Result<Option<Arrival>, GroupError> {
    let (mut flag, mut count) = (0, 0);
    let mut status = MaybeUninit::<ffi::MPI_Status>::zeroed();
    // SAFETY: MPI writes the flag, and the status where there is a message; a status of zeros is one.
    let code = unsafe {
        let from = from.map_or(ffi::RSMPI_ANY_SOURCE, |from| from as c_int);
        let tag = tag.unwrap_or(ffi::RSMPI_ANY_TAG);
        ffi::MPI_Iprobe(from, tag, ffi::RSMPI_COMM_WORLD, &raw mut flag, status.as_mut_ptr())
    };
    check(code, "looking for a message")?;
    if flag == 0 {
        return Ok(None);
    }
    // SAFETY: as above.
    let status = unsafe { status.assume_init() };
    // SAFETY: the status is that of the message.
    let code = unsafe { ffi::MPI_Get_count(&raw const status, ffi::RSMPI_UINT8_T, &raw mut count) };
    check(code, "measuring a message")?;
    Ok(Some(Arrival { from: status.MPI_SOURCE as usize, tag: status.MPI_TAG, count: count as usize }))
}

/// Ends MPI: every process has to come here, and none sends anything more.
pub(crate) fn finalise() {
    // SAFETY: MPI was initialised, and is used no more.
    unsafe { ffi::MPI_Finalize() };
}
