package attest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxProcFile bounds what is read of one file of /proc.
const maxProcFile = 64 << 10

// read looks at everything that /proc says of the process that fd pins, and
// requires at the end that it still lives and still runs the same program. It
// owns fd.
func (a *Attestor) read(pid, uid, gid, fd int) (*Workload, error) {
	p, err := newPidfd(fd)
	if err != nil {
		return nil, refused(err)
	}
	w := &Workload{PID: pid, UID: uid, GID: gid, a: a, fd: p}
	first := w.readImage()
	w.readGroups()
	w.readUnit()
	w.readNames()
	again, err := lookAt(pid)
	switch {
	case !p.alive():
		err = errGone
	case first != nil && (err != nil || again != *first):
		err = errors.New("the process began another program while it was attested")
	default:
		return w, nil
	}
	w.Close()
	return nil, refused(err)
}

func (w *Workload) readGroups() {
	s, err := readStatus(w.PID)
	if err != nil {
		return // only findings use it
	}
	w.Groups = s.groups
}

func (w *Workload) readUnit() {
	b, err := readFile(procPath(w.PID, "cgroup"))
	if err != nil {
		w.blind("systemd", reason(err))
		return
	}
	w.Unit = parseUnit(b)
}

// readNames fills what a person wants to see; Match compares numbers.
func (w *Workload) readNames() {
	if w.UID == w.a.overflow {
		w.blind("user", "the user does not exist in this agent's user namespace")
	} else if u, err := user.LookupId(strconv.Itoa(w.UID)); err == nil {
		w.User = u.Username
	}
	if w.GID < 0 {
		return
	}
	if w.a.overflow >= 0 && w.GID == w.a.overflow {
		w.blind("group", "the group does not exist in this agent's user namespace")
	} else if g, err := user.LookupGroupId(strconv.Itoa(w.GID)); err == nil {
		w.Group = g.Name
	}
}

// A status is what is wanted of /proc/PID/status: effective ids and
// supplementary groups.
type status struct {
	uid, gid int
	groups   []int
}

func readStatus(pid int) (status, error) {
	b, err := readFile(procPath(pid, "status"))
	if err != nil {
		return status{}, err
	}
	return parseStatus(b)
}

// parseStatus reads proc_pid_status(5). A process may put anything into its
// name, but the kernel escapes newlines in it.
func parseStatus(b []byte) (status, error) {
	var s status
	var ok bool
	for _, f := range []struct {
		name string
		to   *int
	}{{"Uid:", &s.uid}, {"Gid:", &s.gid}} {
		text, _ := field(b, f.name)
		ids := strings.Fields(text) // real, effective, saved, file system
		if len(ids) != 4 {
			return status{}, errors.New("/proc/PID/status is not as expected")
		}
		if *f.to, ok = number(ids[1]); !ok {
			return status{}, errors.New("/proc/PID/status is not as expected")
		}
	}
	text, _ := field(b, "Groups:")
	for id := range strings.FieldsSeq(text) {
		n, ok := number(id)
		if !ok {
			return status{}, errors.New("/proc/PID/status is not as expected")
		}
		s.groups = append(s.groups, n)
	}
	return s, nil
}

// ticks count hundredths of a second since the machine started; the kernel
// shows USER_HZ as 100 on every architecture that Go runs on.
type ticks uint64

// uptime is now.
func uptime() (ticks, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, err
	}
	return ticks(ts.Nano() / 1e7), nil
}

// startTime is when the process began.
func startTime(pid int) (ticks, error) {
	b, err := readFile(procPath(pid, "stat"))
	if err != nil {
		return 0, err
	}
	return parseStart(b)
}

// parseStart reads field 22 of proc_pid_stat(5). Field 2 is the program's own
// name in parentheses, which may hold spaces and parentheses: the fields are
// counted from the last one.
func parseStart(b []byte) (ticks, error) {
	i := bytes.LastIndexByte(b, ')')
	fields := bytes.Fields(b[i+1:])
	const afterName = 22 - 3
	if i < 0 || len(fields) <= afterName {
		return 0, errors.New("/proc/PID/stat is not as expected")
	}
	n, err := strconv.ParseUint(string(fields[afterName]), 10, 64)
	if err != nil {
		return 0, errors.New("/proc/PID/stat is not as expected")
	}
	return ticks(n), nil
}

// field is the rest of the line that starts with name.
func field(b []byte, name string) (string, bool) {
	for line := range bytes.SplitSeq(b, []byte("\n")) {
		if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
			return string(bytes.TrimSpace(rest)), true
		}
	}
	return "", false
}

// number is a user, group or process number: decimal digits within 32 bits.
func number(s string) (int, bool) {
	if s == "" || s[0] == '+' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return int(n), err == nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxProcFile))
}

func procPath(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }

const needsPtrace = "it is another user's process and this agent has no CAP_SYS_PTRACE"

// reason says for Unreadable why a file of /proc could not be read.
func reason(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return needsPtrace
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		return "/proc does not show the process"
	}
	return err.Error()
}
