package link

import (
	"fmt"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/logging"
)

// capabilities are those of this agent.
func (c *Client) capabilities() []string {
	has := Capabilities()
	if c.levels == nil {
		has = slices.DeleteFunc(has, func(s string) bool { return s == LogLevels })
	}
	return has
}

// setLevel changes what is logged here.
func (c *Client) setLevel(o *LogOrder) error {
	level, err := logging.ParseLevel(o.Level)
	switch {
	case c.levels == nil, o.Number == 0:
		return fmt.Errorf("%w: a log level that was not asked for", ErrMessage)
	case o.Level == "":
		c.levels.Reset()
	case err != nil:
		return fmt.Errorf("%w: %w", ErrMessage, err)
	case o.Seconds < 1 || o.Seconds > int64(logging.MaxChange/time.Second):
		return fmt.Errorf("%w: a log level for %d seconds", ErrMessage, o.Seconds)
	default:
		c.levels.Set(level, time.Duration(o.Seconds)*time.Second)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.relevel = o.Number
	close(c.reported)
	c.reported = make(chan struct{})
	return nil
}

// level is what is logged here, for a server that has these capabilities, and what is
// closed when that is another.
func (c *Client) level(has []string) (*LogState, <-chan struct{}) {
	if c.levels == nil || !slices.Contains(has, LogLevels) {
		return nil, nil
	}
	now, changed := c.levels.State()
	c.mu.Lock()
	defer c.mu.Unlock()
	return &LogState{
		Number: c.relevel, Level: logging.LevelName(now.Level), Normal: logging.LevelName(now.Normal), Until: now.Until.UTC().Truncate(time.Second),
	}, changed
}
