package attest_test

import (
	"os"
	"slices"
	"testing"

	"github.com/parleymesh/parley/internal/enrol/attest"
)

func TestUnitIsTheSystemsOwn(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ cgroup, want string }{
		"service":            {"0::/system.slice/orders.service\n", "orders.service"},
		"nested slices":      {"0::/shop.slice/shop-back.slice/orders.service\n", "orders.service"},
		"template":           {"0::/system.slice/system-orders.slice/orders@1.service\n", "orders@1.service"},
		"root":               {"0::/init.scope\n", "init.scope"},
		"session":            {"0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"},
		"a user's own unit":  {"0::/user.slice/user-1000.slice/user@1000.service/app.slice/orders.service\n", "user@1000.service"},
		"delegated":          {"0::/system.slice/docker.service/orders.service\n", "docker.service"},
		"slice in delegated": {"0::/system.slice/docker.service/system.slice/orders.service\n", "docker.service"},
		"escaped":            {"0::/system.slice/_cpu.service\n", "cpu.service"},
		"first version":      {"9:name=systemd:/system.slice/orders.service\n8:pids:/\n0::/\n", "orders.service"},
		"both":               {"9:name=systemd:/system.slice/a.service\n0::/system.slice/b.service\n", "b.service"},
		"other hierarchy":    {"8:pids:/system.slice/orders.service\n", ""},
		"removed":            {"0::/system.slice/orders.service (deleted)\n", ""},
		"outside":            {"0::/../system.slice/orders.service\n", ""},
		"plain directory":    {"0::/docker/0a1b/orders.service\n", ""},
		"none":               {"0::/\n", ""},
		"only a suffix":      {"0::/system.slice/.service\n", ""},
		"empty":              {"", ""},
	} {
		if got := attest.ParseUnit([]byte(tc.cgroup)); got != tc.want {
			t.Errorf("%s: got %q, want %q", name, got, tc.want)
		}
	}
}

func TestStatusTakesTheEffectiveIDs(t *testing.T) {
	t.Parallel()
	uid, gid, groups, err := attest.ParseStatus([]byte("Name:\tx\\nUid:\t9\t9\t9\t9\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t10 11 \n"))
	if uid != 2 || gid != 6 || !slices.Equal(groups, []int{10, 11}) || err != nil {
		t.Errorf("got %d, %d, %v, %v", uid, gid, groups, err)
	}
}

func TestStartSkipsTheName(t *testing.T) {
	t.Parallel()
	line := "12 (a) 1 (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20\n"
	if got, err := attest.ParseStart([]byte(line)); got != 4242 || err != nil {
		t.Errorf("got %d, %v", got, err)
	}
}

func FuzzParseStatus(f *testing.F) {
	own, _ := os.ReadFile("/proc/self/status")
	f.Add(own)
	f.Add([]byte("Uid:\t1 2 3\nGid:"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if uid, gid, _, err := attest.ParseStatus(b); err == nil && (uid < 0 || gid < 0) {
			t.Errorf("uid %d, gid %d", uid, gid)
		}
	})
}

func FuzzParseStart(f *testing.F) {
	own, _ := os.ReadFile("/proc/self/stat")
	f.Add(own)
	f.Add([]byte(")"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = attest.ParseStart(b) })
}

func FuzzParseUnit(f *testing.F) {
	f.Add([]byte("0::/user.slice/user-1000.slice/user@1000.service/app.slice/orders.service\n"))
	f.Add([]byte("1:name=systemd:/_.slice/_x.scope"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if u := attest.ParseUnit(b); len(u) > 0 && u[len(u)-1] != 'e' { // .service, .scope
			t.Errorf("unit %q", u)
		}
	})
}

func FuzzParseReply(f *testing.F) {
	ok := make([]byte, 88)
	ok[0], ok[4], ok[16], ok[17] = 88, 20, 2, 1
	f.Add(ok)
	f.Add([]byte{36, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, src, dst, _, _, err := attest.ParseReply(b); err == nil && (!src.IsValid() || !dst.IsValid()) {
			t.Errorf("addresses %v, %v", src, dst)
		}
	})
}

func FuzzDirectoryAndLink(f *testing.F) {
	f.Add([]byte("socket:[4026531840]"))
	f.Add(append(make([]byte, 16), 24, 0, 4, '1', '2', 0, 0, 0))
	f.Fuzz(func(_ *testing.T, b []byte) {
		attest.SocketInode(b)
		attest.EachName(b, func([]byte) bool { return true })
	})
}
