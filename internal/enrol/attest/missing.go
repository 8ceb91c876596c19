package attest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

// unitDirs are where the units of the system's own manager are found: the load
// path of systemd.unit(5), with what was started without a file in transient.
var unitDirs = []string{
	"/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/transient", "/run/systemd/generator.early",
	"/etc/systemd/system", "/etc/systemd/system.attached", "/run/systemd/system", "/run/systemd/system.attached",
	"/run/systemd/generator", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system", "/run/systemd/generator.late",
}

// booted is there where systemd is the system's manager (sd_booted(3)).
const booted = "/run/systemd/system"

// Missing says which selectors of a service no process of this host can match as
// the host is now, so that a name that was mistyped is noticed before somebody
// wonders who is refused: a user, group, unit or file that does not exist, or a
// file that the kernel shows under another path. It is nil where there is none,
// and for what this agent may not look at. The code is fault.SelectorMissing.
func Missing(service string, want snapshot.RunsAs) *fault.Fault {
	var gone []string
	for _, m := range []string{
		missingUser(want.User), missingGroup(want.Group), missingUnit(want.Systemd, booted, unitDirs), missingExe(want.Exe),
	} {
		if m != "" {
			gone = append(gone, m)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return fault.New(fault.SelectorMissing, "correct runs_as of "+service+", or see to what is missing",
		"no process of this host can be %s: %s", service, strings.Join(gone, ", and "))
}

func missingUser(name string) string {
	if _, ok := number(name); ok || name == "" {
		return ""
	}
	var unknown user.UnknownUserError
	if _, err := user.Lookup(name); errors.As(err, &unknown) {
		return "there is no user " + name
	}
	return ""
}

func missingGroup(name string) string {
	if _, ok := number(name); ok || name == "" {
		return ""
	}
	var unknown user.UnknownGroupError
	if _, err := user.LookupGroup(name); errors.As(err, &unknown) {
		return "there is no group " + name
	}
	return ""
}

// missingUnit looks for the unit's file, or for that of its template. The manager
// itself would have to be asked over D-Bus.
func missingUnit(unit, booted string, dirs []string) string {
	if unit == "" || unit == "init.scope" {
		return ""
	}
	if _, err := os.Stat(booted); errors.Is(err, fs.ErrNotExist) {
		return "systemd does not run here, which " + unit + " would be of"
	}
	names := []string{unit}
	if name, instance, ok := strings.Cut(unit, "@"); ok {
		names = append(names, name+"@"+filepath.Ext(instance))
	}
	for _, dir := range dirs {
		for _, name := range names {
			if _, err := os.Lstat(filepath.Join(dir, name)); err == nil || !notThere(err) {
				return ""
			}
		}
	}
	return "there is no unit " + unit
}

func missingExe(path string) string {
	if path == "" {
		return ""
	}
	info, err := os.Stat(path)
	switch {
	case err != nil && notThere(err):
		return fmt.Sprintf("there is no file %q", path)
	case err != nil:
		return ""
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fmt.Sprintf("%q is no file that can be run", path)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil && real != path {
		return fmt.Sprintf("%q is a link, and what runs is %q", path, real)
	}
	if isScript(path) {
		return fmt.Sprintf("%q is a script, and what runs is its interpreter", path)
	}
	return ""
}

// isScript says whether the kernel would start another program for the file
// (execve(2)).
func isScript(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // whatever it has become by now
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, 2)
	n, _ := f.Read(head) // what cannot be read is not said to be one
	return string(head[:n]) == "#!"
}

func notThere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}
