package control

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/logging"
)

// Logs are the logs of the processes of the mesh.
type Logs interface {
	// LogLevels are what they write: the server's, whose host is empty, and then those
	// of agents in other processes in order of their host.
	LogLevels() []api.LogLevel
	// SetLogLevel makes the server's, or that of host's agent, level for d, or where
	// level is empty what the process was started with. It waits for an agent, briefly.
	SetLogLevel(ctx context.Context, host, level string, d time.Duration) error
}

// normalLevel is how the level is called that a process was started with.
const normalLevel = "default"

// levelDefault is how long a level holds where nobody says.
const levelDefault = 10 * time.Minute

// maxLevelHosts bounds the hosts of one request.
const maxLevelHosts = 1000

func (o operations) ListLogLevels(context.Context, api.ListLogLevelsRequestObject) (api.ListLogLevelsResponseObject, error) {
	return api.ListLogLevels200JSONResponse{Items: o.cfg.Logs.LogLevels()}, nil
}

func (o operations) SetLogLevel(ctx context.Context, r api.SetLogLevelRequestObject) (api.SetLogLevelResponseObject, error) {
	hosts, level, d, err := o.levelOrder(r.Body)
	if err != nil {
		return nil, err
	}
	notes := map[string]string{}
	for _, l := range o.cfg.Logs.LogLevels() {
		if !slices.Contains(hosts, l.Host) || l.Level == "" { // what does not say cannot be told
			continue
		}
		// What cannot be recorded is not done.
		if err := o.cfg.Events.Log(ctx, o.event(ctx, audit.LogLevelChanged, audit.Success, levelObject(l.Host, level, d))); err != nil {
			return nil, err
		}
		if err := o.cfg.Logs.SetLogLevel(ctx, l.Host, level, d); err != nil {
			notes[l.Host] = err.Error()
		}
	}
	items := []api.LogLevel{}
	for _, l := range o.cfg.Logs.LogLevels() {
		if slices.Contains(hosts, l.Host) {
			l.Note = cmp.Or(notes[l.Host], l.Note)
			items = append(items, l)
		}
	}
	return api.SetLogLevel200JSONResponse{Items: items}, nil
}

// levelObject is what a change is about.
func levelObject(host, level string, d time.Duration) *audit.Object {
	detail := level + " for " + d.String()
	if level == "" {
		detail = normalLevel
	}
	return &audit.Object{Kind: "log", Name: cmp.Or(host, "server"), Detail: detail}
}

// levelOrder is what r asks for: the hosts, with the server as the empty one.
func (s *Server) levelOrder(r *api.LogLevelRequest) (hosts []string, level string, d time.Duration, err error) {
	if level = r.Level; level == normalLevel {
		level = ""
	} else if _, err := logging.ParseLevel(level); err != nil {
		return nil, "", 0, fault.New(fault.BadRequest, "choose one, or default for what the process was started with", "%s", err)
	}
	d = levelDefault
	switch maximum := int64(logging.MaxChange / time.Second); {
	case r.Seconds < 0 || r.Seconds > maximum:
		return nil, "", 0, fault.New(fault.BadRequest, "choose 1s to 24h, or start the process with --log-level", "seconds is 1 to %d", maximum)
	case r.Seconds > 0:
		d = time.Duration(r.Seconds) * time.Second
	}
	known := s.cfg.Logs.LogLevels()
	switch {
	case r.All && len(r.Hosts) > 0:
		return nil, "", 0, fault.New(fault.BadRequest, "leave one of them out", "all and hosts are both said")
	case r.All:
		for _, l := range known {
			if l.Host == "" || l.Level != "" {
				hosts = append(hosts, l.Host)
			}
		}
		return hosts, level, d, nil
	case len(r.Hosts) == 0:
		return []string{""}, level, d, nil
	case len(r.Hosts) > maxLevelHosts:
		return nil, "", 0, fault.New(fault.BadRequest, "say all", "there are more than %d hosts", maxLevelHosts)
	}
	for _, h := range r.Hosts {
		if err := checkLabel("host", h, 1, maxName); err != nil {
			return nil, "", 0, err
		}
		if !slices.ContainsFunc(known, func(l api.LogLevel) bool { return l.Host == h }) {
			return nil, "", 0, fault.New(fault.NotFound, "see which are: parley log level", "there is no agent of a host %q beside the server's process", h)
		}
		if !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts, level, d, nil
}
