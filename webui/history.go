package webui

import (
	"fmt"
	"time"
)

// History is what became of the enrollments of the last days.
type History struct {
	Days    []HistoryDay // oldest first, without gaps
	Since   time.Time    // what was before is not counted; zero: all of these days is
	Counted bool         // false while the log is being read for the first time
}

// HistoryDay is one day in UTC.
type HistoryDay struct {
	Start   time.Time
	Issued  uint64
	Refused uint64
	Failed  uint64
}

// Total is how many enrollments the day had.
func (d HistoryDay) Total() uint64 { return d.Issued + d.Refused + d.Failed }

// chart is the picture of a History, in the units of its viewBox.
type chart struct {
	History
	Issued  uint64 // in all days
	Refused uint64
	Failed  uint64
	Width   int
	Height  int
	Grid    []chartLine
	Bars    []chartBar
}

// Summary is the picture in words.
func (c chart) Summary() string {
	if c.Issued+c.Refused+c.Failed == 0 {
		return fmt.Sprintf("No device enrolled in the last %d days.", len(c.Days))
	}
	return fmt.Sprintf("In the last %d days: %d issued, %d refused, %d failed.", len(c.Days), c.Issued, c.Refused, c.Failed)
}

// chartLine is a line across the picture with the number it stands for.
type chartLine struct {
	Y     int
	Label string
}

// chartBar is one day.
type chartBar struct {
	HistoryDay
	Middle int // of the bar
	Label  string
	Title  string
	Parts  []chartPart // from the bottom up
}

// chartPart is a rectangle.
type chartPart struct {
	Class               string // what it counts: "issued", "refused" or "failed"
	X, Y, Width, Height int
}

// Sizes of the picture. It is drawn about as large as its units, so that its text can be read on a phone.
const (
	chartWidth  = 420
	chartHeight = 170
	chartLeft   = 34
	chartTop    = 10
	chartBottom = 146
	barWidth    = 30
)

// newChart draws a history. today is the day whose bar is called so.
func newChart(h History, today time.Time) chart {
	c := chart{History: h, Width: chartWidth, Height: chartHeight}
	most := uint64(0)
	for _, d := range h.Days {
		c.Issued, c.Refused, c.Failed = c.Issued+d.Issued, c.Refused+d.Refused, c.Failed+d.Failed
		most = max(most, d.Total())
	}
	top := roundUp(most)
	up := func(n uint64) int { return int(float64(n) / float64(top) * (chartBottom - chartTop)) }
	for _, n := range []uint64{0, top / 2, top} {
		c.Grid = append(c.Grid, chartLine{Y: chartBottom - up(n), Label: short(n)})
	}
	step := (chartWidth - chartLeft) / max(len(h.Days), 1)
	for i, d := range h.Days {
		bar := chartBar{HistoryDay: d, Middle: chartLeft + i*step + step/2, Label: d.Start.UTC().Format("Mon"),
			Title: fmt.Sprintf("%s: %d issued, %d refused, %d failed", d.Start.UTC().Format(time.DateOnly), d.Issued, d.Refused, d.Failed)}
		if d.Start.UTC().Format(time.DateOnly) == today.UTC().Format(time.DateOnly) {
			bar.Label = "today"
		}
		y := chartBottom
		for _, part := range []struct {
			class string
			n     uint64
		}{{"issued", d.Issued}, {"refused", d.Refused}, {"failed", d.Failed}} {
			if part.n == 0 {
				continue
			}
			height := max(up(part.n), 2) // even one of thousands is seen
			y -= height
			bar.Parts = append(bar.Parts, chartPart{part.class, bar.Middle - barWidth/2, y, barWidth, height})
		}
		c.Bars = append(c.Bars, bar)
	}
	return c
}

// roundUp is the next number of 2, 4, 6, 10, 20, 40, 60, 100, …: half of it is whole and easy to read.
func roundUp(n uint64) uint64 {
	for unit := uint64(1); ; unit *= 10 {
		for _, k := range []uint64{2, 4, 6, 10} {
			if n <= k*unit {
				return k * unit
			}
		}
	}
}

// short writes a number for the picture's edge.
func short(n uint64) string {
	switch {
	case n >= 1_000_000:
		return fmt.Sprintf("%gM", float64(n)/1e6)
	case n >= 10_000:
		return fmt.Sprintf("%gk", float64(n)/1e3)
	}
	return fmt.Sprint(n)
}
