package call_test

import (
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/call"
)

func TestTrace(t *testing.T) {
	t.Parallel()
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	got, kept := call.NextTrace([]string{good})
	if !kept || got.TraceID != "0af7651916cd43dd8448eb211c80319c" || got.ParentID != "b7ad6b7169203331" || !got.Sampled || len(got.SpanID) != 16 || got.SpanID == got.ParentID {
		t.Errorf("got %+v", got)
	}
	if next, ok := call.ParseTraceParent(call.FormatTraceParent(got)); !ok || next.TraceID != got.TraceID || next.ParentID != got.SpanID {
		t.Errorf("next %+v", next)
	}
	if later, ok := call.ParseTraceParent("cc" + good[2:] + "-more"); !ok || later.TraceID != got.TraceID {
		t.Error("a later version is refused")
	}
	for _, bad := range []string{
		"", good[:54], good + "-x", "ff" + good[2:], "0g" + good[2:], strings.ToUpper(good), "00-" + strings.Repeat("0", 32) + good[35:], good[:36] + strings.Repeat("0", 16) + "-01",
		strings.ReplaceAll(good, "-", "_"), "cc" + good[2:] + "x", good[:53] + "0g",
	} {
		if _, ok := call.ParseTraceParent(bad); ok {
			t.Errorf("%q is accepted", bad)
		}
		fresh, kept := call.NextTrace([]string{bad})
		if kept || len(fresh.TraceID) != 32 || fresh.ParentID != "" || !fresh.Sampled {
			t.Errorf("%q gives %+v", bad, fresh)
		}
	}
	if _, kept := call.NextTrace([]string{good, good}); kept {
		t.Error("two are taken for one")
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"a", "A-z_0.9", strings.Repeat("x", 64)} {
		if got := call.RequestID([]string{good}); got != good {
			t.Errorf("%q became %q", good, got)
		}
	}
	for _, bad := range [][]string{nil, {""}, {"a b"}, {"a\n"}, {strings.Repeat("x", 65)}, {"a", "a"}, {"é"}} {
		got := call.RequestID(bad)
		if len(got) != 32 || len(bad) > 0 && got == bad[0] {
			t.Errorf("%q became %q", bad, got)
		}
	}
	if one, other := call.RequestID(nil), call.RequestID(nil); one == other {
		t.Error("made ids repeat")
	}
}

func FuzzTraceParent(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Add("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		tr, ok := call.ParseTraceParent(s)
		if !ok {
			if tr != (call.Trace{}) {
				t.Fatalf("a refused one gives %+v", tr)
			}
			return
		}
		tr.SpanID = tr.ParentID
		if again, ok := call.ParseTraceParent(call.FormatTraceParent(tr)); !ok || again.TraceID != tr.TraceID || again.Sampled != tr.Sampled {
			t.Fatalf("%q gives %+v, which gives %+v", s, tr, again)
		}
	})
}

func FuzzRequestID(f *testing.F) {
	f.Add("abc")
	f.Add("a b\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		if got := call.RequestID([]string{s}); len(got) > 64 || strings.ContainsAny(got, " \r\n\x00") || call.RequestID([]string{got}) != got {
			t.Fatalf("%q gives %q", s, got)
		}
	})
}
