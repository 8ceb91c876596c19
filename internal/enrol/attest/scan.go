package attest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parleymesh/parley/internal/clock"
)

const (
	// scanLimit is how much of a processor's time one look through a user's processes
	// may take. After one that took more, the user's connections are refused for as
	// long. A machine that is busy with other things makes a look longer, and not
	// dearer; whoever waits for it waits for patience times as long at most.
	scanLimit = time.Second
	patience  = 10
	// maxRounds is how often one look goes back for processes that began meanwhile.
	maxRounds = 8
)

// errLate says that a user has more open than can be looked through.
var errLate = errors.New("looking through the descriptors of its user's processes took too long")

// A holder is a process, the descriptor for a socket that one of its threads has,
// and what it ran when that was seen.
type holder struct {
	pid, task, fd int
	runs          program
}

// A program is a file that a process runs, under the name by which it was
// started: one file may have several. It is zero where it cannot be read.
type program struct {
	path     string
	dev, ino uint64
}

func programOf(pid int) program {
	im, err := lookAt(pid)
	if err != nil {
		return program{}
	}
	path, _ := os.Readlink(procPath(pid, "exe")) // empty is a path as good as any to compare
	return program{path, im.dev, im.ino}
}

// scanners find the processes that hold a socket, among those of the user who made
// it: nobody else can have it but from them. So nobody delays the look for
// another's connection by what they keep open themselves.
type scanners struct {
	clk    clock.Clock
	limit  time.Duration // scanLimit
	mu     sync.Mutex    // guards byUser
	byUser map[int]*scanner
}

// A scanner is one user's. One scan answers everybody who asked before it began,
// so that however many connections arrive, one core at most reads /proc for a user.
type scanner struct {
	users int        // who are in holders; guarded by scanners.mu
	mu    sync.Mutex // guards next
	next  *scan
	run   sync.Mutex // held while a scan runs; guards rest
	rest  time.Time  // until when nothing is looked for, after a scan that was late
}

// A scan is one look through all descriptors of a user's processes.
type scan struct {
	uid   int
	found map[uint32][]holder // by the inodes that are looked for
	held  int                 // holders that were found
	// flight is a process that has descriptors in flight, 0 for none. It is looked
	// for where deep is set, at several times the cost of a socket.
	deep   bool
	flight int
	done   bool
	err    error
}

func (s *scanners) init(clk clock.Clock) {
	s.clk, s.limit, s.byUser = clk, scanLimit, map[int]*scanner{}
}

// of is the scanner of uid, to be given back.
func (s *scanners) of(uid int) (u *scanner, giveBack func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u = s.byUser[uid]
	if u == nil {
		u = &scanner{}
		s.byUser[uid] = u
	}
	u.users++
	return u, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		u.users--
		now := s.clk.Now()
		for uid, u := range s.byUser {
			if u.users == 0 && !now.Before(u.rest) {
				delete(s.byUser, uid)
			}
		}
	}
}

// holders are the processes of uid that hold inode. Those that this agent may not
// look into are not among them. With deep, flight is a process of uid that has
// descriptors in flight, which may be inode's, or 0.
func (s *scanners) holders(uid int, inode uint32, deep bool) (found []holder, flight int, err error) {
	u, giveBack := s.of(uid)
	defer giveBack()
	u.mu.Lock()
	if u.next == nil {
		u.next = &scan{uid: uid, found: map[uint32][]holder{}}
	}
	mine := u.next
	mine.found[inode] = nil
	mine.deep = mine.deep || deep
	u.mu.Unlock()

	u.run.Lock()
	defer u.run.Unlock()
	if !mine.done {
		u.mu.Lock()
		u.next = nil // from here on nobody joins
		u.mu.Unlock()
		mine.done = true
		if now := s.clk.Now(); now.Before(u.rest) {
			mine.err = errLate
		} else if mine.err = mine.walk(s.clk, s.limit); errors.Is(mine.err, errLate) {
			u.rest = s.clk.Now().Add(s.limit)
		}
	}
	return mine.found[inode], mine.flight, mine.err
}

// walk goes on until a look at what began meanwhile finds no more holders: a
// child to which one of them gave the socket may be younger than the list of
// processes that was gone through.
func (s *scan) walk(clk clock.Clock, limit time.Duration) error {
	runtime.LockOSThread() // whose time is counted
	defer runtime.UnlockOSThread()
	spent, end := threadTime()+limit, clk.Now().Add(patience*limit)
	over := func() bool { return threadTime() > spent || clk.Now().After(end) }
	proc, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/proc: %w", err)
	}
	defer unix.Close(proc)
	b := &buffers{make([]byte, 32<<10), make([]byte, 32<<10), make([]byte, 64), make([]byte, 512)}
	visited := map[int]bool{}
	for range maxRounds {
		held, late := s.held, false
		if _, err := unix.Seek(proc, 0, unix.SEEK_SET); err != nil {
			return fmt.Errorf("/proc: %w", err)
		}
		err := entries(proc, b.pids, func(name []byte) bool {
			pid, ok := decimal(name)
			if !ok || visited[pid] || !s.owns(proc, name) {
				return true
			}
			visited[pid] = true
			late = !s.process(proc, pid, b, over)
			return !late
		})
		switch {
		case late:
			return errLate
		case err != nil || s.held == held:
			return err
		}
	}
	return errors.New("the connection is handed on faster than its holders can be found")
}

// threadTime is how much of a processor's time this thread has had.
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err) // every kernel has it (clock_gettime(2))
	}
	return time.Duration(t.Nano())
}

// owns says whether a process is the user's: its directory belongs to its
// effective user, even where all in it is root's (proc_pid(5)).
func (s *scan) owns(proc int, pid []byte) bool {
	var st unix.Stat_t
	return unix.Fstatat(proc, string(pid), &st, 0) == nil && int(st.Uid) == s.uid
}

// process looks at the descriptors of one process, and says whether it came to the
// end of them in time. One that ended meanwhile or may not be looked into holds
// nothing that we can see.
func (s *scan) process(proc, pid int, b *buffers, late func() bool) bool {
	if !s.table(proc, pid, pid, b, late) {
		return false
	}
	for _, tid := range ownTables(proc, pid, b.names) {
		if !s.table(proc, pid, tid, b, late) {
			return false
		}
	}
	return true
}

// table looks at the descriptors of one thread.
func (s *scan) table(proc, pid, task int, b *buffers, late func() bool) bool {
	dir, err := unix.Openat(proc, fmt.Sprintf("%d/fd", task), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return !late()
	}
	defer unix.Close(dir)
	const often = 1024
	looked := 0
	_ = entries(dir, b.names, func(name []byte) bool {
		if looked++; looked%often == 0 && late() {
			return false
		}
		fd, ok := decimal(name)
		if !ok {
			return true
		}
		n, err := unix.Readlinkat(dir, string(name), b.link)
		if err != nil {
			return true
		}
		inode, ok := socketInode(b.link[:n])
		if !ok {
			return true
		}
		if held, wanted := s.found[inode]; wanted {
			s.found[inode] = append(held, holder{pid, task, fd, programOf(pid)})
			s.held++
		}
		if s.deep && s.flight == 0 && inFlight(proc, task, fd, b.info) {
			s.flight = pid
		}
		return true
	})
	return !late()
}

// buffers are a scan's, one for each thing that is read.
type buffers struct{ pids, names, link, info []byte }

// holds says whether the descriptor is still the socket.
func (h holder) holds(inode uint32) bool {
	link := make([]byte, 64)
	n, err := unix.Readlink(fmt.Sprintf("/proc/%d/fd/%d", h.task, h.fd), link)
	if err != nil {
		return false
	}
	is, ok := socketInode(link[:n])
	return ok && is == inode
}

// socketInode reads "socket:[123]" (proc_pid_fd(5)).
func socketInode(link []byte) (uint32, bool) {
	rest, ok := bytes.CutPrefix(link, []byte("socket:["))
	if !ok || len(rest) < 2 || rest[len(rest)-1] != ']' {
		return 0, false
	}
	var n uint64
	for _, c := range rest[:len(rest)-1] {
		if c < '0' || c > '9' || n > 1<<32 {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return uint32(n), n < 1<<32
}

// entries calls each with every name in an open directory until it says false.
// os.ReadDir would look at every entry's type and sort them.
func entries(dir int, buf []byte, each func(name []byte) bool) error {
	for {
		n, err := unix.Getdents(dir, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return err
		}
		if !eachName(buf[:n], each) {
			return nil
		}
	}
}

// eachName walks the linux_dirent64 records of getdents64(2): 8 bytes inode, 8
// offset, 2 length of the record, 1 type, then the name up to a zero byte.
func eachName(b []byte, each func(name []byte) bool) bool {
	const header = 19
	for len(b) > header {
		size := int(binary.NativeEndian.Uint16(b[16:]))
		if size <= header || size > len(b) {
			return false
		}
		name := b[header:size]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		if !each(name) {
			return false
		}
		b = b[size:]
	}
	return true
}

// decimal reads a process or descriptor number.
func decimal(name []byte) (n int, ok bool) {
	if len(name) == 0 || len(name) > 9 {
		return 0, false
	}
	for _, c := range name {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}
