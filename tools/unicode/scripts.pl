#!/usr/bin/perl
# Writes src/text/unicode_scripts.c: the Script property up to a Unicode version, as ranges.
# SPDX-License-Identifier: Apache-2.0
#   perl tools/unicode/scripts.pl > src/text/unicode_scripts.c && clang-format -i ...
# The tokenizers library's table for the UnicodeScripts pre-tokenizer follows Unicode 9; what was
# assigned later has no script there. Hiragana and Katakana count as Han, as in SentencePiece.
use strict;
use warnings;
use Unicode::UCD qw(prop_invmap);

my $last = 9;
my ($s_start, $s_value) = prop_invmap("Script");
my ($a_start, $a_value) = prop_invmap("Age");

sub at {    # value of an inversion map at a code point
    my ($starts, $values, $cp, $i) = @_;
    $$i++ while $$i + 1 < @$starts && $starts->[$$i + 1] <= $cp;
    return $values->[$$i];
}

my %number = (Any => 0);
my @ranges;
my ($si, $ai) = (0, 0);
for my $cp (0 .. 0x10FFFF) {
    my $script = at($s_start, $s_value, $cp, \$si);
    my $age = at($a_start, $a_value, $cp, \$ai);
    $age =~ s/^V(\d+)_/$1./;
    $script = "Any" if $script eq "Unknown" || $age !~ /^\d/ || $age >= $last + 1;
    $script = "Han" if $script eq "Hiragana" || $script eq "Katakana" || $cp == 0x30FC;
    $script = "Any" if $cp == 0x20;
    $number{$script} = keys %number if !exists $number{$script};
    my $n = $number{$script};
    if (@ranges && $ranges[-1][2] == $n && $ranges[-1][1] == $cp - 1) {
        $ranges[-1][1] = $cp;
    } else {
        push @ranges, [$cp, $cp, $n];
    }
}
@ranges = grep { $_->[2] } @ranges;

print "/* Written by tools/unicode/scripts.pl from Unicode's Scripts.txt, as of version $last.\n",
  " * SPDX-License-Identifier: Apache-2.0 */\n", "#include \"text/unicode.h\"\n\n",
  "static const struct {\n    int32_t first, last;\n    int script;\n} ranges[] = {\n";
printf "    {0x%X, 0x%X, %d},\n", @$_ for @ranges;
print <<'END';
};

int unicode_script(int32_t cp)
{
    size_t lo = 0, hi = sizeof ranges / sizeof *ranges;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (cp < ranges[mid].first)
            hi = mid;
        else if (cp > ranges[mid].last)
            lo = mid + 1;
        else
            return ranges[mid].script;
    }
    return 0;
}
END
