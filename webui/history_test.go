package webui

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// week is a history that ends on the day the tests' clock begins.
func week(counts ...[3]uint64) History {
	h := History{Counted: true}
	for i, c := range counts {
		day := start.Truncate(24*time.Hour).AddDate(0, 0, i-len(counts)+1)
		h.Days = append(h.Days, HistoryDay{day, c[0], c[1], c[2]})
	}
	return h
}

// TestChart: every part lies inside the picture, on top of the one before it, and as high as its share.
func TestChart(t *testing.T) {
	for _, h := range []History{
		week([3]uint64{}, [3]uint64{}, [3]uint64{}),
		week([3]uint64{1, 0, 0}, [3]uint64{0, 7, 0}, [3]uint64{12, 3, 1}),
		week([3]uint64{1_000_000, 0, 1}, [3]uint64{0, 0, 1}, [3]uint64{3, 0, 999_999}),
	} {
		c := newChart(h, start)
		if len(c.Bars) != len(h.Days) || c.Bars[len(c.Bars)-1].Label != "today" || c.Bars[0].Label == "today" {
			t.Fatalf("bars %+v", c.Bars)
		}
		for _, bar := range c.Bars {
			bottom := chartBottom
			for _, p := range bar.Parts {
				if p.Y+p.Height != bottom || p.Height < 2 || p.X < chartLeft || p.X+p.Width > chartWidth || p.Y < 0 {
					t.Errorf("%s: %+v above %d", bar.Title, p, bottom)
				}
				bottom = p.Y
			}
			if len(bar.Parts) == 0 != (bar.Total() == 0) {
				t.Errorf("%s: %d parts", bar.Title, len(bar.Parts))
			}
		}
		for _, line := range c.Grid {
			if line.Y < chartTop || line.Y > chartBottom {
				t.Errorf("line %+v", line)
			}
		}
	}
	c := newChart(week([3]uint64{}, [3]uint64{20, 0, 0}, [3]uint64{10, 0, 0}), start)
	if a, b := c.Bars[1].Parts[0], c.Bars[2].Parts[0]; a.Height != 2*b.Height || a.Y != chartTop {
		t.Errorf("twice as many are %d and %d high, from %d", a.Height, b.Height, a.Y)
	}
	if got := c.Summary(); got != "In the last 3 days: 30 issued, 0 refused, 0 failed." {
		t.Error(got)
	}
	if got := newChart(week([3]uint64{}), start).Summary(); !strings.HasPrefix(got, "No device enrolled") {
		t.Error(got)
	}
}

func TestRoundUp(t *testing.T) {
	var got []string
	for _, n := range []uint64{0, 1, 2, 3, 5, 7, 11, 61, 100, 101, 999, 123456} {
		got = append(got, fmt.Sprintf("%d:%s", n, short(roundUp(n))))
	}
	if want := "0:2 1:2 2:2 3:4 5:6 7:10 11:20 61:100 100:100 101:200 999:1000 123456:200k"; strings.Join(got, " ") != want {
		t.Errorf("%s, want %s", strings.Join(got, " "), want)
	}
}
