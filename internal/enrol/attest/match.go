package attest

import (
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

// Match is nil where every selector that is set holds for the process, and at
// least one is set. By exe and sha256 it must hold for every process that has the
// connection, too. Otherwise it is a *fault.Fault: NotAttested says what
// differs, SelectorBlind that nothing differs but something could not be read.
func (w *Workload) Match(want snapshot.RunsAs) error {
	if want == (snapshot.RunsAs{}) {
		return fault.New(fault.NotAttested, "", "the service has no runs_as selector")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var differs, blind []string
	check := func(selector, wanted string, holds func() (have string, ok bool)) {
		if wanted == "" {
			return
		}
		have, ok := "", false
		if w.Unreadable[selector] == "" {
			have, ok = holds()
		}
		switch {
		case ok:
		case w.Unreadable[selector] != "":
			blind = append(blind, fmt.Sprintf("%s (%s)", selector, w.Unreadable[selector]))
		default:
			differs = append(differs, fmt.Sprintf("%s is %s, not %s", selector, have, wanted))
		}
	}
	check("user", want.User, func() (string, bool) { return named(w.UID, w.User), is(w.UID, want.User, uidOf) })
	check("group", want.Group, func() (string, bool) { return named(w.GID, w.Group), is(w.GID, want.Group, gidOf) })
	check("systemd", want.Systemd, func() (string, bool) { return orNone(w.Unit), w.Unit == want.Systemd })
	check("exe", want.Exe, func() (string, bool) { return orNone(w.Exe), w.Exe == want.Exe })
	if len(differs) == 0 { // a stranger does not make us read its executable
		check("sha256", want.SHA256, func() (string, bool) {
			sum := w.digest()
			return orNone(sum), sum != "" && sum == want.SHA256
		})
	}
	switch {
	case len(differs) > 0:
		return fault.New(fault.NotAttested, "", "%s is not the service: %s", w, strings.Join(differs, ", "))
	case len(blind) > 0:
		hint := ""
		if slices.ContainsFunc(blind, func(s string) bool { return strings.Contains(s, "CAP_") }) {
			hint = blindHint
		}
		return fault.New(fault.SelectorBlind, hint, "this agent cannot read %s of %s", strings.Join(blind, ", "), w)
	case w.conn != nil && byProgram(want):
		return w.shared(want)
	}
	return nil
}

const blindHint = "give the agent what it needs to look (AmbientCapabilities=CAP_SYS_PTRACE CAP_DAC_READ_SEARCH in its unit), or name the service by selectors that it can read, such as user"

// String names the process for people.
func (w *Workload) String() string {
	who := "a process of user " + named(w.UID, w.User)
	if w.PID != 0 {
		who = fmt.Sprintf("process %d of user %s", w.PID, named(w.UID, w.User))
	}
	if w.Exe != "" {
		who += fmt.Sprintf(" running %q", w.Exe)
	}
	return who
}

// digest fills SHA256, or says in Unreadable why it cannot. The caller holds mu.
func (w *Workload) digest() string {
	if w.SHA256 == "" {
		sum, err := w.a.digests.digest(w)
		if err != nil {
			w.blind("sha256", reason(err))
		}
		w.SHA256 = sum
	}
	return w.SHA256
}

// is compares by number: a user may have several names.
func is(id int, want string, lookup func(string) (string, error)) bool {
	n, ok := number(want)
	if !ok {
		text, err := lookup(want)
		if err != nil {
			return false
		}
		if n, ok = number(text); !ok {
			return false
		}
	}
	return id >= 0 && id == n
}

func uidOf(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return u.Uid, nil
}

func gidOf(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", err
	}
	return g.Gid, nil
}

// UserText is the user of that number for people: "nobody (65534)", or the number
// alone where it has no name here.
func UserText(uid int) string {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return named(uid, "")
	}
	return named(uid, u.Username)
}

func named(id int, name string) string {
	if name == "" {
		return fmt.Sprint(id)
	}
	return fmt.Sprintf("%s (%d)", name, id)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
